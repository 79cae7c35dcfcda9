import { join } from 'node:path'

// Lists packages that bundled code requires when it loads, but that this program never uses.
const names = [
  // @oclif/core: search for plugins, configuration files, and help from templates (src/cli/help.ts has none).
  'tinyglobby',
  'minimatch',
  'lilconfig',
  'ejs',
  // dockerode: image builds with BuildKit, which use gRPC sessions, and build contexts.
  '@balena/dockerignore',
  '@grpc/grpc-js',
  '@grpc/proto-loader',
  'protobufjs',
  'tar-fs',
]

// Leave out `ssh2`: docker-modem extends one of its classes when it loads, but src/docker/connection.ts runs the `ssh` program.
const sshOfModem = { filter: /^\.\/ssh$/, importer: /node_modules[\\/]docker-modem[\\/]/ }

/** Returns the code of the replacement for an absent package. Every use throws an error that names the package. */
const contentsFor = (name) => `
const fail = () => { throw new Error(${JSON.stringify(`${name} is not in the bundle (scripts/bundle/absent-packages.js)`)}) }
module.exports = new Proxy(function () {}, { get: fail, apply: fail, construct: fail })
`

/** Leaves packages out of the bundle, and the framework's spinner. */
export const absentPackages = {
  name: 'absent-packages',
  setup(build) {
    build.onResolve({ filter: new RegExp(`^(${names.join('|')})$`) }, ({ path }) => ({ path, namespace: 'absent' }))
    build.onResolve({ filter: sshOfModem.filter }, ({ importer }) =>
      sshOfModem.importer.test(importer) ? { path: 'ssh2', namespace: 'absent' } : undefined,
    )
    build.onLoad({ filter: /.*/, namespace: 'absent' }, ({ path }) => ({ contents: contentsFor(path) }))
    // Use the framework's spinner for pipes, which has no frames: on a terminal the framework creates a spinner at its first
    // output, and this program shows none.
    build.onResolve({ filter: /^\.\/action\/spinner$/ }, ({ resolveDir }) => ({
      path: join(resolveDir, 'action', 'simple.js'),
    }))
  },
}
