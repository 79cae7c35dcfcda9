#!/usr/bin/env node
import module from 'node:module'

// Node 22.1 and newer keep what they compile; the import waits, so that it covers the framework too.
module.enableCompileCache?.()
const { execute } = await import('@oclif/core/execute')
await execute({ dir: import.meta.url })
