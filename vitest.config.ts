import { defineConfig } from 'vitest/config'

const shared = {
  environment: 'node' as const,
  setupFiles: ['test/support/setup.ts'],
  reporters: ['default'],
  // As the time-outs of tests below: what is waited for comes, and the usual second is too short for a machine that is busy.
  expect: { poll: { timeout: 20_000 } },
}

const withRealClients = {
  ...shared,
  globalSetup: ['test/e2e/support/global-setup.ts'],
  testTimeout: 300_000,
  hookTimeout: 300_000,
}
/** They measure memory or time, or take all there is of a machine. */
const limits = ['limits-*', 'slow-*', 'registry-crash', 'log-disk', 'read-only-disk'].map(
  (name) => `test/e2e/${name}.test.ts`,
)

export default defineConfig({
  test: {
    projects: [
      {
        test: {
          ...shared,
          name: 'fast',
          // Most tests wait for sockets and clocks: more of them than cores run well together.
          maxWorkers: 3,
          include: ['test/**/*.test.ts'],
          exclude: ['test/e2e/**'],
          // Far beyond what any of them takes: a machine that is busy with something else shall fail none.
          testTimeout: 60_000,
          hookTimeout: 60_000,
        },
      },
      {
        test: {
          ...withRealClients,
          name: 'e2e-clients',
          include: ['test/e2e/**/*.test.ts'],
          exclude: limits,
          // Each has a network, sockets and folders of its own, and waits for daemons most of the time.
          maxWorkers: 3,
          sequence: { groupOrder: 1 },
        },
      },
      {
        test: {
          ...withRealClients,
          name: 'e2e-limits',
          include: limits,
          fileParallelism: false,
          sequence: { groupOrder: 2 },
        },
      },
    ],
  },
})
