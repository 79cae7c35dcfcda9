/** `0.29.1+ds1`, with or without a `v`, is [0, 29]; undefined for what is no version. */
export function majorAndMinor(version: string | undefined): readonly [number, number] | undefined {
  const [, major, minor] = /^v?(\d+)(?:\.(\d+))?(?:[^\d]|$)/.exec(version ?? '') ?? []
  return major === undefined ? undefined : [Number(major), Number(minor ?? 0)]
}

/** Whether a version is known to be this one or a later one. A release candidate counts as the release. */
export function isAtLeast(version: string | undefined, major: number, minor: number): boolean {
  const known = majorAndMinor(version)
  return known !== undefined && (known[0] > major || (known[0] === major && known[1] >= minor))
}

/** The version in what `containerd --version` prints: `containerd github.com/containerd/containerd/v2 v2.1.4 75cb2b7193…` */
export function containerdVersionIn(stdout: string): string | undefined {
  return /(?:^|\s)v?(\d+\.\d+\.\d[\w.-]*)/.exec(stdout)?.[1]
}
