#!/usr/bin/env node
// Runs the compiled program with oclif's development output. TypeScript 7 has no API for oclif's own transpiling, so that is off.
import { execute, settings } from '@oclif/core'

settings.enableAutoTranspile = false
await execute({ development: true, dir: import.meta.url })
