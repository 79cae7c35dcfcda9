import { settings } from '@oclif/core'

// Disable oclif's auto-transpile: TypeScript 7 has no API for it, and it would silently run an old dist/.
settings.enableAutoTranspile = false

// Remove the variable that `npx vitest` sets, because the program would assume that npx runs it.
delete process.env['npm_command']
