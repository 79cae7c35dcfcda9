import { defineConfig } from 'vitest/config'

const shared = {
  environment: 'node' as const,
  setupFiles: ['test/support/setup.ts'],
  reporters: ['default'],
  // Poll longer than the default of one second, which is too short on a busy machine.
  expect: { poll: { timeout: 20_000 } },
}

const withRealClients = {
  ...shared,
  globalSetup: ['test/e2e/support/global-setup.ts'],
  testTimeout: 300_000,
  hookTimeout: 300_000,
}
/** Lists tests that measure memory or time, or that use a whole machine. */
const limits = ['limits-*', 'slow-*', 'metadata-crash', 'log-disk', 'read-only-disk'].map(
  (name) => `test/e2e/${name}.test.ts`,
)

export default defineConfig({
  test: {
    projects: [
      {
        test: {
          ...shared,
          name: 'fast',
          // Run more tests than cores, because most of them wait for sockets and clocks.
          maxWorkers: 3,
          include: ['test/**/*.test.ts'],
          exclude: ['test/e2e/**', 'test/dashboard/**'],
          // Allow far more time than any test takes, so that none fails on a busy machine.
          testTimeout: 60_000,
          hookTimeout: 60_000,
        },
      },
      {
        test: {
          ...shared,
          name: 'dashboard',
          include: ['test/dashboard/**/*.test.ts'],
          globalSetup: ['test/dashboard/support/global-setup.ts'],
          // Run one browser at a time, because each takes more than a core.
          fileParallelism: false,
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
          // Run several at once: each has its own network, sockets and folders, and mostly waits for daemons.
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
