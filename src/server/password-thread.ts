import { once } from 'node:events'
import { readFile } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { Worker, type MessagePort } from 'node:worker_threads'

/** Compares passwords with bcrypt hashes on a thread of its own: one comparison takes as long as hundreds of requests. */
export interface PasswordThread {
  /** One comparison at a time. A thread that dies is replaced once; throws what the second one died of. */
  compare(password: string, hash: string): Promise<boolean>
  close(): Promise<void>
}

interface Comparison {
  readonly password: string
  readonly hash: string
}

interface Verdict {
  readonly isSame?: boolean
  readonly error?: string
}

/** What the thread does. It is sent there as text, and uses nothing but its arguments. */
function compareAll(port: MessagePort, { compareSync }: { compareSync: (password: string, hash: string) => boolean }) {
  port.on('message', ({ password, hash }: Comparison) => {
    try {
      port.postMessage({ isSame: compareSync(password, hash) } satisfies Verdict)
    } catch (error) {
      port.postMessage({ error: String(error) } satisfies Verdict)
    }
  })
  port.postMessage({} satisfies Verdict)
}

/** Resolves when the thread runs. The library is read once: a thread that has to be replaced needs no file. */
export async function startPasswordThread(): Promise<PasswordThread> {
  const library = await readFile(createRequire(import.meta.url).resolve('bcryptjs'), 'utf8')
  // By its text: it is found in the same way in a bundle, in a package and in the sources.
  const source = `
const library = { exports: {} };
(function (exports, module) {
${library}
})(library.exports, library);
(${compareAll.toString()})(require('node:worker_threads').parentPort, library.exports)`
  let running: Promise<Worker> | undefined
  let closed = false

  function start(): Promise<Worker> {
    const resourceLimits = { maxYoungGenerationSizeMb: 4, maxOldGenerationSizeMb: 32 }
    const worker = new Worker(source, { eval: true, resourceLimits, execArgv: [], env: {} })
    worker.unref()
    const started = answerOf(worker).then(() => worker)
    // Whoever waits for an answer is told; an idle thread that dies is replaced when it is needed.
    const forget = () => {
      if (running === started) running = undefined
    }
    worker.on('error', forget)
    worker.once('exit', forget)
    return started
  }

  async function compare(password: string, hash: string): Promise<boolean> {
    const worker = await (running ??= start())
    const answered = answerOf(worker)
    worker.postMessage({ password, hash } satisfies Comparison, [])
    const { isSame, error } = await answered
    if (isSame === undefined) throw new Error(`bcrypt failed: ${error}`)
    return isSame
  }

  await (running = start())
  return {
    async compare(password, hash) {
      if (closed) throw new Error('the mirror is stopping')
      try {
        return await compare(password, hash)
      } catch (error) {
        if (closed) throw error
        return compare(password, hash)
      }
    },
    async close() {
      closed = true
      const worker = await running?.catch(() => undefined)
      await worker?.terminate()
    },
  }
}

/** The next message of a thread. Throws what the thread dies of before that. */
async function answerOf(worker: Worker): Promise<Verdict> {
  const ending = new AbortController()
  const { signal } = ending
  const died = once(worker, 'exit', { signal }).then(() => {
    throw new Error('the password thread has ended')
  })
  try {
    // `once` rejects with an 'error' event.
    const [verdict] = (await Promise.race([once(worker, 'message', { signal }), died])) as [Verdict]
    return verdict
  } finally {
    died.catch(() => {})
    ending.abort()
  }
}
