import { expect, test } from 'vitest'
import { printedClients } from '../../../src/clients/printed.ts'
import type { MirrorForClient } from '../../../src/clients/types.ts'

function mirrorWith(registry: string): MirrorForClient {
  return { cache: 'http://127.0.0.1:5055', registry, registries: [], defaultUpstream: 'docker.io', fallback: true }
}

test.each([
  ['http://127.0.0.1:6001', 'localhost:6001'],
  ['http://[::1]:6001', 'localhost:6001'],
  ['https://host.docker.internal:6001', 'localhost:6001'],
  ['http://build.corp.internal:6001', 'build.corp.internal:6001'],
  ['http://host.corp.internal:6001', 'host.corp.internal:6001'],
  ['http://build.corp.example:6001', 'build.corp.example:6001'],
  ['https://build.corp.example', 'build.corp.example'],
  ['http://build', 'build:80'],
])('skaffold and Tilt push to the registry at %s as %s', (registry, name) => {
  expect(printedClients.skaffold.print(mirrorWith(registry)).output).toBe(`SKAFFOLD_DEFAULT_REPO=${name}\n`)
  expect(printedClients.tilt.print(mirrorWith(registry)).output).toBe(`default_registry('${name}')\n`)
})
