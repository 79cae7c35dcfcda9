import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { readdir, readFile } from 'node:fs/promises'
import { expect, onTestFinished } from 'vitest'
import type { MirrorProcess } from './mirror-process.ts'

export const hasStrace = spawnSync('strace', ['-V']).status === 0

/** Limits Node to one disk thread: strace counts calls per thread, so the third write is then the third of the process. */
export const oneDiskThread = { UV_THREADPOOL_SIZE: '1' }

/**
 * Makes system calls of a running mirror fail, such as `fsync,fdatasync:error=EIO`; with `paths` only those on these files. The
 * returned function stops that.
 */
export async function failDisk(
  mirror: MirrorProcess,
  injection: string,
  paths: readonly string[] = [],
): Promise<() => Promise<void>> {
  const calls = injection.slice(0, injection.indexOf(':'))
  const strace = ['-f', '-qq', '-o', '/dev/null', '-e', `trace=${calls}`, '-e', `inject=${injection}`]
  for (const path of paths) strace.push('-P', path)
  const tracer = spawn('strace', [...strace, '-p', String(mirror.pid)], { stdio: 'ignore' })
  onTestFinished(() => void tracer.kill('SIGKILL'))
  await expect.poll(() => untracedThreads(mirror.pid), { timeout: 10_000 }).toEqual([])
  return async () => {
    const ended = once(tracer, 'exit')
    tracer.kill('SIGINT')
    await ended
  }
}

async function untracedThreads(pid: number): Promise<string[]> {
  const threads = await readdir(`/proc/${pid}/task`)
  const statuses = await Promise.all(threads.map((thread) => readFile(`/proc/${pid}/task/${thread}/status`, 'utf8')))
  return threads.filter((_, at) => /^TracerPid:\s*0$/m.test(statuses[at]!))
}
