import { join } from 'node:path'

// What @oclif/core asks for and this program never comes to: plugins to look for, configuration files, and help from templates
// (src/cli/help.ts has none).
const names = ['tinyglobby', 'minimatch', 'lilconfig', 'ejs']

/** Stands for a package that is left out. Who comes to it after all reads which one it was, not of something undefined. */
const contentsFor = (name) => `
module.exports = new Proxy({}, {
  get() { throw new Error(${JSON.stringify(`${name} is not in the bundle (scripts/bundle/absent-packages.js)`)}) },
})
`

/** Leaves packages out of the bundle, and the framework's spinner. */
export const absentPackages = {
  name: 'absent-packages',
  setup(build) {
    build.onResolve({ filter: new RegExp(`^(${names.join('|')})$`) }, ({ path }) => ({ path, namespace: 'absent' }))
    build.onLoad({ filter: /.*/, namespace: 'absent' }, ({ path }) => ({ contents: contentsFor(path) }))
    // On a terminal the framework makes its spinner as soon as it prints anything. This program has none to show: the one for
    // pipes, which needs no frames, serves.
    build.onResolve({ filter: /^\.\/action\/spinner$/ }, ({ resolveDir }) => ({
      path: join(resolveDir, 'action', 'simple.js'),
    }))
  },
}
