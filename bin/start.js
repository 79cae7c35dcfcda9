'use strict'
// Starts the program: read only by a Node that run.js has found new enough.

// Node 22.1 and newer keep what they compile; the import waits, so that all of it is covered.
require('node:module').enableCompileCache?.()
// Reading the source maps takes longer than the start, and only who looks for a bug reads a stack.
if (process.env.DEBUG) process.setSourceMapsEnabled(true)

void import('../dist/cli/main.js').then(({ main }) => main())
