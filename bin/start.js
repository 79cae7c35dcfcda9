'use strict'
// Starts the program: read only by a Node that run.js has found new enough.

const { enableCompileCache } = require('node:module')
const uid = process.geteuid?.()

// Node 22.1 and newer keep what they compile; the import waits, so that all of it is covered. A folder that the user has named
// is in use by now.
if (process.env.NODE_COMPILE_CACHE) leaveOthersCache()
else if (enableCompileCache !== undefined && !process.env.NODE_DISABLE_COMPILE_CACHE) useOwnCache()

// Reading the source maps takes longer than the start, and only who looks for a bug reads a stack.
if (process.env.DEBUG) process.setSourceMapsEnabled(true)

// An import opens all files at once on Node 20, which a small limit on open files does not allow: one after the other here.
if (process.argv[2] === 'serve' && process.features.require_module) require('../dist/daemon/serve.js')

/** Rejects when the program cannot be loaded. */
exports.started = import('../dist/cli/main.js').then(({ main }) => main())

function useOwnCache() {
  const { compileCacheFolder } = require('./compile-cache.js')
  const { version } = require('../package.json')
  const { platform, env } = process
  const folder = compileCacheFolder({ platform, env, uid, version })
  if (folder !== undefined) enableCompileCache(folder)
}

/** Root runs nothing that another user has compiled: `sudo -E` keeps the variables of whoever calls it. */
function leaveOthersCache() {
  if (uid !== 0 || enableCompileCache === undefined) return
  const { isClosed } = require('./compile-cache.js')
  const { NODE_COMPILE_CACHE: folder, ...env } = process.env
  if (isClosed(require('node:path').resolve(folder), 0)) return
  delete process.env.NODE_COMPILE_CACHE
  // From here on nothing gets Node to leave a folder that it uses, except to begin again without it.
  if (process.execve !== undefined)
    process.execve(process.execPath, [process.execPath, ...process.execArgv, ...process.argv.slice(1)], env)
  process.stderr.write(
    `mirror: other users than root can change ${folder} (NODE_COMPILE_CACHE), and Node runs what is there.\n\n` +
      'Next:\n  env -u NODE_COMPILE_CACHE mirror   (as root, with the same arguments)\n',
  )
  process.exit(1)
}
