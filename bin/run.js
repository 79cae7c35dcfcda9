#!/usr/bin/env node
'use strict'

// Every Node reads this file, also one that is too old for the program, so that it can say what is needed: nothing here is
// newer than ES5, and package.json beside it makes it CommonJS. A Node that is new enough goes on with start.js.

/** Says why this version of Node, `18.20.8` for instance, cannot run the program; undefined when it can. */
function problemOf(version) {
  var parts = version.split('.')
  var major = Number(parts[0])
  var minor = Number(parts[1])
  if (major > 22 || (major === 22 && minor >= 3) || (major === 20 && minor >= 19)) return undefined
  // These are younger, but lack what 20.19 has: process.getBuiltinModule.
  var exceptions = major > 20 ? ', but not 21, nor 22 before 22.3' : ''
  return 'Node 20.19 or newer is needed' + exceptions + '; this is Node ' + version
}

function refuse(problem) {
  var lines = [
    'mirror: ' + problem + ' (' + process.execPath + ').',
    '',
    'Next:',
    '  nvm install --lts   (with nvm; other ways: https://nodejs.org/en/download)',
    '',
  ]
  process.stderr.write(lines.join('\n'))
  // 1, as for everything that fails before the mirror has a say: 2 to 5 are its own answers.
  process.exitCode = 1
}

exports.problemOf = problemOf
exports.refuse = refuse

if (require.main === module) {
  var problem = problemOf(process.versions.node)
  if (problem) refuse(problem)
  else require('./start.js')
}
