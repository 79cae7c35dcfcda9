// What @oclif/core asks for and this program never comes to: plugins to look for, configuration files, spinners, and the shell it
// runs in (on Windows that question starts a PowerShell at every start; without an answer the framework takes COMSPEC).
const names = ['tinyglobby', 'minimatch', 'lilconfig', 'cli-spinners', 'wsl-utils']

/** Leaves them out of the bundle. */
export const absentPackages = {
  name: 'absent-packages',
  setup(build) {
    build.onResolve({ filter: new RegExp(`^(${names.join('|')})$`) }, ({ path }) => ({ path, namespace: 'absent' }))
    build.onLoad({ filter: /.*/, namespace: 'absent' }, () => ({ contents: 'module.exports = {}' }))
  },
}
