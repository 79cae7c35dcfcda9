#!/usr/bin/env node
// Runs the compiled program with oclif's development output.
process.setSourceMapsEnabled(true)
const { main } = await import('../dist/cli/main.js')
await main({ development: true })
