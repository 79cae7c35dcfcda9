import { settings } from '@oclif/core'

// TypeScript 7 has no API for oclif's auto-transpile, which would silently run an old dist/.
settings.enableAutoTranspile = false

// What `npx vitest` leaves behind would have the program take itself for one that npx runs.
delete process.env['npm_command']
