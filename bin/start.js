'use strict'
// Starts the program. Only a Node that run.js has found new enough reads this file.

const { enableCompileCache } = require('node:module')
const uid = process.geteuid?.()

// A completion script waits for this one, which loads so little that neither a cache nor the loader of modules is worth its time.
const isCompletion = process.argv[2] === '__complete'

// Node 22.1 and newer keep compiled code. The import comes later, so that the cache covers all of it. Node already uses a folder
// that the user has named.
if (process.env.NODE_COMPILE_CACHE) leaveOthersCache()
else if (enableCompileCache !== undefined && !isCompletion && !process.env.NODE_DISABLE_COMPILE_CACHE) useOwnCache()

// Source maps take longer to read than the start takes, so they are for debugging only.
if (process.env.DEBUG) process.setSourceMapsEnabled(true)

// Load the files one after the other: an import opens all of them at once on Node 20, too many for a small limit on open files.
if (process.argv[2] === 'serve' && process.features.require_module) require('../dist/daemon/serve.js')

/** Rejects when the program cannot be loaded. */
exports.started = isCompletion
  ? require('../dist/cli/complete.cjs').main()
  : import('../dist/cli/main.js').then(({ main }) => main())

function useOwnCache() {
  const { compileCacheFolder } = require('./compile-cache.js')
  const { version } = require('../package.json')
  const { platform, env } = process
  const folder = compileCacheFolder({ platform, env, uid, version })
  if (folder !== undefined) enableCompileCache(folder)
}

/** Keeps root from running code that another user has compiled: `sudo -E` keeps the caller's variables. */
function leaveOthersCache() {
  if (uid !== 0 || enableCompileCache === undefined) return
  const { isClosed } = require('./compile-cache.js')
  const { NODE_COMPILE_CACHE: folder, ...env } = process.env
  if (isClosed(require('node:path').resolve(folder), 0)) return
  delete process.env.NODE_COMPILE_CACHE
  // Node cannot leave a folder that it uses, so start again without it.
  if (process.execve !== undefined)
    process.execve(process.execPath, [process.execPath, ...process.execArgv, ...process.argv.slice(1)], env)
  process.stderr.write(
    `mirror: other users than root can change ${folder} (NODE_COMPILE_CACHE), and Node runs what is there.\n\n` +
      'Next:\n  env -u NODE_COMPILE_CACHE mirror   (as root, with the same arguments)\n',
  )
  process.exit(1)
}
