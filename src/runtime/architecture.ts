const names: Readonly<Record<string, string>> = {
  x64: 'amd64',
  x86_64: 'amd64',
  aarch64: 'arm64',
  armv7l: 'arm',
  armhf: 'arm',
  ia32: '386',
  i686: '386',
  ppc64: 'ppc64le',
}

/** What images call an architecture that Node or the kernel names: `x64` and `x86_64` are `amd64`. */
export function imageArchitecture(name: string): string {
  return names[name] ?? name
}
