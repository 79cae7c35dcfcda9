import { join } from 'node:path'

// Packages that bundled code asks for when it loads and that this program never uses.
const names = [
  // @oclif/core: plugins to look for, configuration files, and help from templates (src/cli/help.ts has none).
  'tinyglobby',
  'minimatch',
  'lilconfig',
  'ejs',
  // dockerode: builds of images by BuildKit, which are gRPC sessions, and build contexts.
  '@balena/dockerignore',
  '@grpc/grpc-js',
  '@grpc/proto-loader',
  'protobufjs',
  'tar-fs',
]

// docker-modem extends a class of `ssh2` when it loads. src/docker/connection.ts connects by the `ssh` program instead.
const sshOfModem = { filter: /^\.\/ssh$/, importer: /node_modules[\\/]docker-modem[\\/]/ }

/** Replaces a package that is left out. Every use throws an error that names the package. */
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
    // On a terminal the framework makes its spinner as soon as it prints anything. This program has none to show: the one for
    // pipes, which needs no frames, serves.
    build.onResolve({ filter: /^\.\/action\/spinner$/ }, ({ resolveDir }) => ({
      path: join(resolveDir, 'action', 'simple.js'),
    }))
  },
}
