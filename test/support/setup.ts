import { settings } from '@oclif/core'

// TypeScript 7 has no API for oclif's auto-transpile, which would silently run an old dist/.
settings.enableAutoTranspile = false
