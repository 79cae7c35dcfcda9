import { describe } from 'vitest'
import { createFakeEngine } from '../support/fake-engine.ts'
import { dockerEngineContract } from './docker-engine.ts'

describe('the Docker engine in memory', () => {
  const engine = createFakeEngine()
  engine.addImage('busybox:local')
  dockerEngineContract(() => Promise.resolve({ engine, shell: 'busybox:local' }))
})
