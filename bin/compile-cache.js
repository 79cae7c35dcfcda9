'use strict'
// Finds the folder for the compiled code of this program. Node runs the code in it, so only this user and root may
// be able to change it. Node's default folder has a name that anyone can guess, in a folder that all users can write.

const { lstatSync, mkdirSync, readdirSync, readlinkSync, rmSync } = require('node:fs')
const { homedir, userInfo } = require('node:os')
const path = require('node:path')

/** Limits the symbolic links to follow, as Linux does. */
const maxHops = 40
/** Limits the kept folders of other versions, because several versions may be installed. */
const maxOthers = 3

/**
 * Returns the folder for this version of the program, and creates it when it is missing: below XDG_CACHE_HOME or ~/.cache, on macOS
 * below ~/Library/Caches, on Windows below LOCALAPPDATA, which has the access rights of the profile. Undefined when no folder is
 * safe, or none can be created. Throws nothing.
 */
function compileCacheFolder({ platform, env, uid, version, home = () => userInfo().homedir }) {
  try {
    for (const base of basesOf({ platform, env, home })) {
      const folder = openBelow(base, version, platform === 'win32' ? undefined : uid)
      if (folder !== undefined) return folder
    }
  } catch {
    // The program starts without the cache, a little slower.
  }
  return undefined
}

/** Yields the base folders to try, in order: the home folder of the environment may be another user's. */
function* basesOf({ platform, env, home }) {
  if (platform === 'win32') {
    if (env.LOCALAPPDATA) yield env.LOCALAPPDATA
    return
  }
  const below = platform === 'darwin' ? ['Library', 'Caches'] : ['.cache']
  const named = platform === 'darwin' ? undefined : env.XDG_CACHE_HOME
  yield named && path.isAbsolute(named) ? named : path.join(env.HOME || homedir(), ...below)
  yield path.join(home(), ...below)
}

function openBelow(base, version, uid) {
  const parent = path.join(base, 'mirror', 'compile-cache')
  const folder = path.join(parent, version)
  if (uid !== undefined && !isClosed(folder, uid)) return undefined
  if (isPrivate(folder, uid)) return folder
  // Create nothing in a home folder that does not exist.
  if (lstatOf(path.dirname(base)) === undefined) return undefined
  try {
    for (const one of [base, path.join(base, 'mirror'), parent, folder]) makeFolder(one)
  } catch {
    return undefined
  }
  removeOthers(parent, version)
  return isPrivate(folder, uid) && (uid === undefined || isClosed(folder, uid)) ? folder : undefined
}

function isPrivate(folder, uid) {
  const what = lstatOf(folder)
  if (!what?.isDirectory()) return false
  return uid === undefined || (what.uid === uid && (what.mode & 0o077) === 0)
}

/**
 * Returns true if only this user and root can change the file at a path, or create it: they own the path itself, each folder above
 * it and each symbolic link on the way, and no other user may write to it. A sticky folder is no exception, because any user can
 * create a missing entry there.
 */
function isClosed(file, uid, hops = 0) {
  const system = lstatSync('/')
  const trusted = [0, uid, system.uid]
  if ((system.mode & 0o022) !== 0) return false
  let at = '/'
  const parts = file.split('/').filter((part) => part !== '')
  for (const [index, part] of parts.entries()) {
    at = path.resolve(at, part)
    const what = lstatOf(at)
    if (what === undefined) return true
    if (!trusted.includes(what.uid)) return false
    if (what.isSymbolicLink()) {
      if (hops >= maxHops) return false
      return isClosed(path.resolve(path.dirname(at), readlinkSync(at), ...parts.slice(index + 1)), uid, hops + 1)
    }
    if ((what.mode & 0o022) !== 0) return false
  }
  return true
}

function makeFolder(folder) {
  try {
    mkdirSync(folder, { mode: 0o700 })
  } catch (error) {
    if (error.code !== 'EEXIST') throw error
  }
}

/** Removes the folders of other versions, except the newest. */
function removeOthers(parent, version) {
  const others = readdirSync(parent).filter((name) => name !== version)
  const byAge = others
    .map((name) => ({ folder: path.join(parent, name), at: lstatOf(path.join(parent, name))?.mtimeMs ?? 0 }))
    .toSorted((one, other) => other.at - one.at)
  for (const { folder } of byAge.slice(maxOthers)) rmSync(folder, { recursive: true, force: true })
}

function lstatOf(file) {
  return lstatSync(file, { throwIfNoEntry: false })
}

exports.compileCacheFolder = compileCacheFolder
exports.isClosed = isClosed
