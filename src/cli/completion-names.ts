import { readFileSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { mirrorPaths } from '../config/paths.ts'
import { isLoopbackAddress } from '../lib/network.ts'
import type { CommandEnvironment } from '../lib/process.ts'
import { builtInUpstreams } from '../upstream/upstream.ts'

/** Provides names that only the mirror knows. Each function returns what it can find in time, and throws nothing. */
export interface NameSource {
  /** Lists the cached images. */
  cached(): Promise<readonly string[]>
  /** Lists the pushed images. */
  pushed(): Promise<readonly string[]>
  /** Lists the addresses of the registry for pushed images, as names of images begin with them: `localhost:5001`. */
  registries(): readonly string[]
  upstreams(): Promise<readonly string[]>
}

type Kind = 'cached' | 'pushed'

/** Limits the wait for the running mirror, ms: a user waits with it. */
const answerMs = 80
/** Limits the wait for a mirror that has not answered in time before, ms, and how long that counts. */
const lateAnswerMs = 15
const lateForMs = 60_000
const maxFileBytes = 4 * 1024 * 1024
const maxAnswerBytes = 16 * 1024 * 1024
const maxNames = 5000

/**
 * Creates the source of names: the running mirror, if it answers at once, or else what it answered the last time, which is kept in
 * the folder for its state.
 */
export function createNameSource(surroundings: CommandEnvironment): NameSource {
  const { stateDir, stateFile } = mirrorPaths(surroundings)
  const keptFile = join(stateDir, 'completion.json')

  async function find(kind: Kind): Promise<readonly string[]> {
    const { lateAt, ...kept } = readJson(keptFile) ?? {}
    const sinceLate = typeof lateAt === 'number' ? Date.now() - lateAt : -1
    const isLate = sinceLate >= 0 && sinceLate < lateForMs
    const answered = await askMirror(kind, readJson(stateFile), isLate ? lateAnswerMs : answerMs)
    if (answered === 'late' && !isLate) keep(stateDir, keptFile, { ...kept, lateAt: Date.now() })
    if (answered === 'late' || answered === undefined) return toNames(kept[kind])
    keep(stateDir, keptFile, { ...kept, [kind]: answered })
    return answered
  }

  return {
    cached: () => find('cached'),
    pushed: () => find('pushed'),
    registries() {
      const [url] = (readJson(stateFile)?.['endpoints'] as { registry?: unknown[] } | undefined)?.registry ?? []
      if (typeof url !== 'string' || !URL.canParse(url)) return []
      const { host, hostname, port } = new URL(url)
      return isLoopbackAddress(hostname.replaceAll(/[[\]]/g, '')) ? [`localhost:${port || '80'}`, host] : [host]
    },
    async upstreams() {
      const served = readJson(stateFile)?.['served'] as { config?: { upstreams?: object } } | undefined
      return [...new Set([...Object.keys(served?.config?.upstreams ?? {}), ...builtInUpstreams])]
    },
  }
}

/** Asks the running mirror; undefined when none answers, `late` when one does not answer in time. */
async function askMirror(
  kind: Kind,
  state: Record<string, unknown> | undefined,
  waitMs: number,
): Promise<string[] | 'late' | undefined> {
  const [admin] = (state?.['endpoints'] as { admin?: unknown[] } | undefined)?.admin ?? []
  if (typeof admin !== 'string' || !URL.canParse(admin)) return undefined
  const { protocol, hostname, origin } = new URL(admin)
  if (protocol !== 'http:' || !isLoopbackAddress(hostname.replaceAll(/[[\]]/g, ''))) return undefined
  const body = await getText(`${origin}${kind === 'cached' ? '/api/status' : '/api/registry'}`, waitMs)
  if (body === 'late') return body
  const answer = body === undefined ? undefined : parse(body)
  if (answer === undefined) return undefined
  const images = kind === 'cached' ? (answer as { images?: unknown }).images : answer
  if (!Array.isArray(images)) return undefined
  return toNames(images.map((image: { name?: unknown } | null) => image?.name))
}

/** Gets a text of a server that answers at once; undefined or `late` otherwise. */
async function getText(url: string, waitMs: number): Promise<string | undefined> {
  const { get } = await import('node:http')
  return new Promise((resolve) => {
    const give = (text: string | undefined) => {
      clearTimeout(timer)
      request.destroy()
      resolve(text)
    }
    const request = get(url, { agent: false }, (response) => {
      if (response.statusCode !== 200) return give(undefined)
      let text = ''
      response.setEncoding('utf8').on('data', (chunk: string) => {
        text += chunk
        if (text.length > maxAnswerBytes) give(undefined)
      })
      response.on('end', () => give(text))
    })
    request.on('error', () => give(undefined))
    const timer = setTimeout(() => give('late'), waitMs)
  })
}

/** Keeps names for a time without a running mirror, in a folder that exists and belongs to this user. */
function keep(folder: string, file: string, names: object): void {
  const temporary = `${file}.${process.pid}`
  try {
    if (process.geteuid !== undefined && statSync(folder).uid !== process.geteuid()) return
    writeFileSync(temporary, JSON.stringify(names), { mode: 0o600, flag: 'wx' })
    renameSync(temporary, file)
  } catch {
    rmSync(temporary, { force: true })
  }
}

function readJson(file: string): Record<string, unknown> | undefined {
  try {
    if (statSync(file).size > maxFileBytes) return undefined
    const value = parse(readFileSync(file, 'utf8'))
    return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : undefined
  } catch {
    return undefined
  }
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}

function toNames(values: unknown): string[] {
  if (!Array.isArray(values)) return []
  return values.filter((value): value is string => typeof value === 'string').slice(0, maxNames)
}
