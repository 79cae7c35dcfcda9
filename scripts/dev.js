#!/usr/bin/env node
// Runs the compiled program with stacks that name the sources, and with the framework's warnings to developers.
process.setSourceMapsEnabled(true)
process.env.NODE_ENV = 'development'
const { main } = await import('../dist/cli/main.js')
await main()
