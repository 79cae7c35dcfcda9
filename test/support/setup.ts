import { delimiter, join } from 'node:path'
import { settings } from '@oclif/core'

// npm puts the folder of programs of each folder above this one into PATH. As root, mirror refuses those that others can write.
process.env['PATH'] = (process.env['PATH'] ?? '')
  .split(delimiter)
  .filter((folder) => !folder.endsWith(join('node_modules', '.bin')))
  .join(delimiter)

// Disable oclif's auto-transpile: TypeScript 7 has no API for it, and it would silently run an old dist/.
settings.enableAutoTranspile = false

// Ask no server outside of the tests.
process.env['MIRROR_NO_QUOTA_PROBE'] = '1'

// Remove the variable that `npx vitest` sets, because the program would assume that npx runs it.
delete process.env['npm_command']
