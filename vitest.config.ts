import { defineConfig } from 'vitest/config'

const shared = { environment: 'node' as const, setupFiles: ['test/support/setup.ts'], reporters: ['default'] }

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
          ...shared,
          name: 'e2e',
          include: ['test/e2e/**/*.test.ts'],
          globalSetup: ['test/e2e/support/global-setup.ts'],
          fileParallelism: false,
          testTimeout: 300_000,
          hookTimeout: 300_000,
        },
      },
    ],
  },
})
