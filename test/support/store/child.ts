import { fork, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { onTestFinished } from 'vitest'
import { build } from 'vite'

const program = `
import { openMetadata, openStore, systemClock, silentLogger } from './store.mjs'
const [root] = process.argv.slice(2)
try {
  const options = { root, verifyReads: 'auto', minFree: 0, logger: silentLogger, clock: systemClock }
  const store = await openStore(options, (layout) => openMetadata({ ...layout.metadataFiles, ...options }))
  process.send('open')
  process.on('message', async () => {
    await store.close()
    process.disconnect()
  })
} catch (error) {
  process.send(error.name === 'MirrorError' ? 'refused' : String(error.stack))
  process.disconnect()
}
`

/** Compiles the store for separate processes; returns the path of a program that opens the store named by its argument. */
export async function buildStoreProgram(folder: string): Promise<string> {
  const entry = join(folder, 'entry.ts')
  const src = join(import.meta.dirname, '../../../src')
  await mkdir(folder, { recursive: true })
  await writeFile(
    entry,
    ['store/open-store', 'metadata/open-metadata', 'lib/time', 'lib/logger']
      .map((name) => `export * from '${src}/${name}.ts'\n`)
      .join(''),
  )
  await build({
    configFile: false,
    logLevel: 'silent',
    root: folder,
    build: {
      ssr: entry,
      outDir: folder,
      emptyOutDir: false,
      rollupOptions: { output: { entryFileNames: 'store.mjs' } },
    },
  })
  const path = join(folder, 'program.mjs')
  await writeFile(path, program)
  return path
}

/** Starts the program and resolves with its first message: `open`, `refused` or an error. Kills it when the test ends. */
export async function startStoreProgram(
  program: string,
  root: string,
): Promise<{ child: ChildProcess; answer: unknown; kill: () => Promise<void>; stop: () => Promise<void> }> {
  const child = fork(program, [root], { execArgv: [] })
  const exited = once(child, 'exit')
  const kill = async () => {
    child.kill('SIGKILL')
    await exited
  }
  const stop = async () => {
    child.send('stop')
    await exited
  }
  onTestFinished(kill)
  const [answer] = (await once(child, 'message')) as [unknown]
  return { child, answer, kill, stop }
}
