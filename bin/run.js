#!/usr/bin/env node
'use strict'

// Every Node can read this file, so that one that is too old for the program gets a message: the code is ES5, and package.json
// beside it makes it CommonJS. A Node that is new enough loads start.js.

/** Returns why a version of Node, such as `18.20.8`, cannot run the program; undefined when it can. */
function problemOf(version) {
  var parts = version.split('.')
  var major = Number(parts[0])
  var minor = Number(parts[1])
  if (major > 22 || (major === 22 && minor >= 3) || (major === 20 && minor >= 19)) return undefined
  // These are newer than 20.19, but have no process.getBuiltinModule.
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
  // 1, because the codes 2 to 5 are those of the program itself.
  process.exitCode = 1
}

/**
 * Ends with the message about too few open files, as src/daemon/limits.ts has it, because no more of the program can be loaded.
 * Throws any other error.
 */
function endForDescriptors(error) {
  var code = codeOf(error)
  if (code !== 'EMFILE' && code !== 'ENFILE') throw error
  var lines = code === 'ENFILE' ? ofSystem() : ofProcess()
  process.stderr.write('mirror: ' + lines[0] + '\n\nNext:\n  ' + lines.slice(1).join('\n  ') + '\n')
  process.exitCode = 2
}

function codeOf(error) {
  var code = error && error.code
  // Node 26 reports this code when it cannot open a package.json.
  if (code !== 'ERR_INVALID_PACKAGE_CONFIG' || !/too many open files/.test(error.message)) return code
  return /in system/.test(error.message) ? 'ENFILE' : 'EMFILE'
}

function ofProcess() {
  // Use the report, because no file can be opened to read the limit.
  var limits = process.report.getReport().userLimits
  return [
    'The limit on open files is ' +
      limits.open_files.soft +
      ', and the mirror needs at least 56 for its own files, its clients and its upstreams.',
    'ulimit -n 1024   (in a new shell)',
    'LimitNOFILE=1024   (in a systemd unit)',
    'docker run --ulimit nofile=1024 …',
  ]
}

function ofSystem() {
  return [
    'The system has as many files open as it allows (ENFILE).',
    'End programs that hold many files',
    'sysctl fs.file-max   (the limit of the system, which root can raise)',
  ]
}

exports.problemOf = problemOf
exports.refuse = refuse
exports.endForDescriptors = endForDescriptors

function start() {
  try {
    require('./start.js').started.then(undefined, endForDescriptors)
  } catch (error) {
    endForDescriptors(error)
  }
}

if (require.main === module) {
  var problem = problemOf(process.versions.node)
  if (problem) refuse(problem)
  else start()
}
