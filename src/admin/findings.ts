import { isObject } from '../lib/json.ts'
import { OciError } from '../oci/errors.ts'
import type { CheckGroup, CheckResult, CheckState, DoctorReport } from './activity.ts'
import type { FindingsApi } from './api.ts'

const states: readonly CheckState[] = ['ok', 'warn', 'fail', 'skipped']
const groups: readonly CheckGroup[] = ['mirror', 'upstreams', 'listeners', 'clients', 'use']
const maxResults = 1000
/** Limits the characters of a text. */
const maxTextLength = 2000

/** Keeps the last findings of `mirror doctor` in memory, for the dashboard. `runDoctor`: undefined where this process cannot run it. */
export function createFindings(runDoctor: (() => Promise<DoctorReport>) | undefined): FindingsApi {
  let last: DoctorReport | undefined
  let running: Promise<DoctorReport> | undefined
  return {
    get: async () => ({ ...(last && { report: last }), canRun: runDoctor !== undefined }),
    async store(report) {
      last = report
    },
    async run() {
      if (!runDoctor) throw new OciError('UNSUPPORTED', 409, 'This mirror cannot run the checks. Run: mirror doctor')
      // Lets all pages that ask share one run.
      running ??= runDoctor().finally(() => (running = undefined))
      return (last = await running)
    },
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
