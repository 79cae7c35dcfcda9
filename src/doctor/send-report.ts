import type { DoctorReport } from '../admin/activity.ts'
import { findRunningMirror } from '../admin/find-mirror.ts'
import { readSmallFile } from '../lib/fs.ts'
import { getErrno } from '../lib/errors.ts'
import type { CommandEnvironment } from '../lib/process.ts'

const timeoutMs = 1000

/** Sends a report to the running mirror, whose dashboard shows it. Does nothing when no own mirror runs, or when it takes none. */
export async function sendReport(surroundings: CommandEnvironment, report: DoctorReport): Promise<void> {
  const found = await findRunningMirror(surroundings)
  const [admin] = found?.running.endpoints.admin ?? []
  if (found === undefined || found.user !== undefined || admin === undefined) return
  const token = await readToken(found.paths.tokenFile)
  if (token === undefined) return
  const body = JSON.stringify(report)
  const url = new URL('/api/doctor', admin.replace('//0.0.0.0:', '//127.0.0.1:').replace('//[::]:', '//[::1]:'))
  await new Promise<void>((resolve) => {
    const request = process.getBuiltinModule('node:http').request(
      url,
      {
        method: 'PUT',
        agent: false,
        timeout: timeoutMs,
        headers: { 'content-type': 'application/json', authorization: `Bearer ${token}` },
      },
      (response) => {
        response.resume()
        response.once('close', resolve)
      },
    )
    request.once('timeout', () => request.destroy())
    request.once('error', () => resolve())
    request.once('close', resolve)
    request.end(body)
  })
}

async function readToken(path: string): Promise<string | undefined> {
  try {
    return (await readSmallFile(path)).trim() || undefined
  } catch (error) {
    if (getErrno(error) === undefined) throw error
    return undefined
  }
}
