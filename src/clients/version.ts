/** `0.29.1+ds1`, with or without a `v`, is [0, 29]; undefined for what is no version. */
export function majorAndMinor(version: string | undefined): readonly [number, number] | undefined {
  const [, major, minor] = /^v?(\d+)(?:\.(\d+))?(?:[^\d]|$)/.exec(version ?? '') ?? []
  return major === undefined ? undefined : [Number(major), Number(minor ?? 0)]
}
