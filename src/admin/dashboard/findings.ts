import { writeFileAtomic } from '../../lib/fs.ts'
import { isObject, readJsonFile } from '../../lib/json.ts'
import type { OnFailure } from '../../lib/time.ts'
import { OciError } from '../../oci/errors.ts'

/** Holds the result of `mirror doctor --json`. */
export interface DoctorReport {
  /** Gives the time of the run (ISO 8601). */
  readonly at: string
  readonly durationMs: number
  readonly counts: Readonly<Record<CheckState, number>>
  readonly results: readonly CheckResult[]
}

export type CheckState = 'ok' | 'warn' | 'fail' | 'skipped'
export type CheckGroup = 'mirror' | 'upstreams' | 'listeners' | 'clients' | 'use'

/** Describes the result of one check about one subject. */
export interface CheckResult {
  /** Stays the same across releases: `clients.containerd.two-folders`. */
  readonly id: string
  readonly group: CheckGroup
  /** Names what was checked, when there are several: `docker.io`, `kind cluster dev`. */
  readonly subject?: string
  readonly state: CheckState
  /** Says what was seen, or why the check was skipped, in one sentence. */
  readonly saw: string
  /** Holds one command that mends it; absent for ok, and where no command can. */
  readonly fix?: {
    readonly command: string
    /** Is true when the command changes only files of mirror, so that `--fix` may run it. */
    readonly isOwn: boolean
  }
  /** Says what to do where no command mends it. */
  readonly advice?: string
}

/** Describes the operations on the findings of `mirror doctor`. */
export interface FindingsApi {
  get(): Promise<FindingsReport>
  /** Keeps the findings until others replace them. */
  store(report: DoctorReport): Promise<void>
  /** Runs the checks on the server's machine. Throws an OciError (409) where the server cannot. */
  run(): Promise<DoctorReport>
}

export interface FindingsReport {
  /** Holds the last findings; absent when there are none. */
  readonly report?: DoctorReport
  /** Is true when the server can run the checks itself. */
  readonly canRun: boolean
}

const states: readonly CheckState[] = ['ok', 'warn', 'fail', 'skipped']
const groups: readonly CheckGroup[] = ['mirror', 'upstreams', 'listeners', 'clients', 'use']
const maxResults = 1000
const maxFileBytes = 16 * 1024 * 1024
/** Limits the characters of a text. */
const maxTextLength = 2000

interface FindingsOptions {
  /** Runs the checks on this machine; undefined where this process cannot. */
  readonly runDoctor: (() => Promise<DoctorReport>) | undefined
  /** Names the file in the state folder. */
  readonly path: string
  /** Is called when the file cannot be written. */
  readonly onFailure: OnFailure
}

/** Keeps the last findings of `mirror doctor` for the dashboard, across restarts. With a damaged file it starts with none. */
export async function openFindings({ runDoctor, path, onFailure }: FindingsOptions): Promise<FindingsApi> {
  let last = await loadReport(path)
  let running: Promise<DoctorReport> | undefined
  const store = async (report: DoctorReport) => {
    last = report
    await writeFileAtomic(path, JSON.stringify(report)).catch(onFailure)
  }
  return {
    get: async () => ({ ...(last && { report: last }), canRun: runDoctor !== undefined }),
    store,
    async run() {
      if (!runDoctor) throw new OciError('UNSUPPORTED', 409, 'This mirror cannot run the checks. Run: mirror doctor')
      // Lets all pages that ask share one run.
      running ??= runDoctor()
        .then(async (report) => {
          await store(report)
          return report
        })
        .finally(() => (running = undefined))
      return running
    },
  }
}

async function loadReport(path: string): Promise<DoctorReport | undefined> {
  const value = await readJsonFile(path, maxFileBytes)
  try {
    return value && parseDoctorReport(value)
  } catch (error) {
    if (error instanceof OciError) return undefined
    throw error
  }
}

/** Checks the shape of a report, and keeps only what it is made of. Throws an OciError 400. */
export function parseDoctorReport(value: unknown): DoctorReport {
  const { at, durationMs, results } = isObject(value) ? value : {}
  if (typeof at !== 'string' || Number.isNaN(Date.parse(at)) || !isAmount(durationMs)) throw createShapeError()
  if (!Array.isArray(results) || results.length > maxResults) throw createShapeError()
  const parsed = results.map(parseResult)
  const counts = { ok: 0, warn: 0, fail: 0, skipped: 0 }
  for (const { state } of parsed) counts[state] += 1
  return { at: new Date(at).toISOString(), durationMs, counts, results: parsed }
}

function parseResult(value: unknown): CheckResult {
  if (!isObject(value)) throw createShapeError()
  const group = groups.find((one) => one === value['group'])
  const state = states.find((one) => one === value['state'])
  const [id, saw] = [readText(value['id']), readText(value['saw'])]
  if (!group || !state || id === undefined || saw === undefined) throw createShapeError()
  const [subject, advice] = [readText(value['subject']), readText(value['advice'])]
  const fix = isObject(value['fix']) ? value['fix'] : {}
  const command = readText(fix['command'])
  return {
    id,
    group,
    ...(subject !== undefined && { subject }),
    state,
    saw,
    ...(command !== undefined && { fix: { command, isOwn: fix['isOwn'] === true } }),
    ...(advice !== undefined && { advice }),
  }
}

/** Returns a text of bounded length without control characters; undefined for any other value. */
function readText(value: unknown): string | undefined {
  return typeof value === 'string' ? value.slice(0, maxTextLength).replaceAll(/\p{Cc}/gu, ' ') : undefined
}

function isAmount(value: unknown): value is number {
  return typeof value === 'number' && Number.isFinite(value) && value >= 0
}

function createShapeError(): OciError {
  return new OciError('UNKNOWN', 400, 'The body is not a report of mirror doctor.')
}
