#!/usr/bin/env node
import module from 'node:module'

// Node 22.1 and newer keep what they compile; the import waits, so that all of it is covered.
module.enableCompileCache?.()
// Reading the source maps takes longer than the start, and only who looks for a bug reads a stack.
if (process.env.DEBUG) process.setSourceMapsEnabled(true)
const { main } = await import('../dist/cli/main.js')
await main()
