/** PATH for programs unpacked below `root`, which find the rest among the system's. */
export function searchPath(root: string): string {
  const system = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'
  return root === '' ? '/usr/sbin:/usr/bin:/sbin:/bin' : `${root}/usr/sbin:${root}/usr/bin:${system}`
}
