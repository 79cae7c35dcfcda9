'use strict'
// Finds the folder in which Node keeps what it has compiled of this program. Node runs what it finds there, so nobody but this
// user and root may be able to change it: the folder that Node would take by itself has a name that anyone can guess, in a
// folder that everybody can write.

const { lstatSync, mkdirSync, readdirSync, readlinkSync, rmSync } = require('node:fs')
const { homedir, userInfo } = require('node:os')
const path = require('node:path')

/** As many symbolic links as Linux follows. */
const mostHops = 40
/** Folders of other versions that stay: whoever has two of them installed uses both. */
const mostOthers = 3

/**
 * The folder for this version of the program, made where it is missing: below XDG_CACHE_HOME or ~/.cache, on macOS below
 * ~/Library/Caches, on Windows below LOCALAPPDATA, whose access rights are the profile's. Undefined where none is safe, or none
 * can be made. Throws nothing.
 */
function compileCacheFolder({ platform, env, uid, version, home = () => userInfo().homedir }) {
  try {
    for (const base of basesOf({ platform, env, home })) {
      const folder = openBelow(base, version, platform === 'win32' ? undefined : uid)
      if (folder !== undefined) return folder
    }
  } catch {
    // The program starts without it, a little later.
  }
  return undefined
}

/** Where to look, one after the other: the home folder of the environment may be another user's. */
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
  if (isOurs(folder, uid)) return folder
  // A home folder that is not there is none.
  if (lstatOf(path.dirname(base)) === undefined) return undefined
  try {
    for (const one of [base, path.join(base, 'mirror'), parent, folder]) makeFolder(one)
  } catch {
    return undefined
  }
  forgetOthers(parent, version)
  return isOurs(folder, uid) && (uid === undefined || isClosed(folder, uid)) ? folder : undefined
}

function isOurs(folder, uid) {
  const what = lstatOf(folder)
  if (!what?.isDirectory()) return false
  return uid === undefined || (what.uid === uid && (what.mode & 0o077) === 0)
}

/**
 * Whether only this user and root can change what is at a path, or what will be made there: the path itself, each folder above
 * it, and each symbolic link on the way is theirs, and nobody else may write it. A sticky folder is no exception: whoever is
 * first there makes what is missing.
 */
function isClosed(place, uid, hops = 0) {
  const system = lstatSync('/')
  const trusted = [0, uid, system.uid]
  if ((system.mode & 0o022) !== 0) return false
  let at = '/'
  const parts = place.split('/').filter((part) => part !== '')
  for (const [index, part] of parts.entries()) {
    at = path.resolve(at, part)
    const what = lstatOf(at)
    if (what === undefined) return true
    if (!trusted.includes(what.uid)) return false
    if (what.isSymbolicLink()) {
      if (hops >= mostHops) return false
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

/** Removes what versions that are no longer used have left, the oldest first. */
function forgetOthers(parent, version) {
  const others = readdirSync(parent).filter((name) => name !== version)
  const byAge = others
    .map((name) => ({ folder: path.join(parent, name), at: lstatOf(path.join(parent, name))?.mtimeMs ?? 0 }))
    .toSorted((one, other) => other.at - one.at)
  for (const { folder } of byAge.slice(mostOthers)) rmSync(folder, { recursive: true, force: true })
}

function lstatOf(place) {
  return lstatSync(place, { throwIfNoEntry: false })
}

exports.compileCacheFolder = compileCacheFolder
exports.isClosed = isClosed
