import { describe } from 'vitest'
import { createFakeEngine } from '../support/fake-engine.ts'
import { containerEngineContract } from './container-engine.ts'

describe('the Docker engine in memory', () => {
  const engine = createFakeEngine()
  engine.addImage('busybox:local')
  containerEngineContract(() => Promise.resolve({ engine, shell: 'busybox:local' }))
})
