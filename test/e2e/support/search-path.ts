/** Returns the PATH of programs unpacked below `root`, followed by the system's. */
export function searchPath(root: string): string {
  const system = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'
  return root === '' ? '/usr/sbin:/usr/bin:/sbin:/bin' : `${root}/usr/sbin:${root}/usr/bin:${system}`
}
