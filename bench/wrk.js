// Runs wrk and reads its exact figures, because the report of wrk rounds them.
import { spawn } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { cpus } from 'node:os'
import { join } from 'node:path'

const script = `
done = function(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format('\\nRESULT {"requests":%d,"bytes":%.0f,"microseconds":%d,"p99":%d,"errors":%d}\\n',
    summary.requests, summary.bytes, summary.duration, latency:percentile(99),
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
`

/** @param {string} folder for the script of wrk */
export function createWrk(folder) {
  const path = join(folder, 'wrk.lua')
  writeFileSync(path, script)

  /** Resolves with requests and bytes a second, and the 99th percentile of the response time, ms.
   * @param {string} url @param {{ clients: number, seconds: number, headers?: string[] }} load */
  return async function wrk(url, { clients, seconds, headers = [] }) {
    // Use all cores, because one thread of wrk saturates before the server does.
    const threads = Math.min(clients, cpus().length)
    const args = [`-t${threads}`, `-c${clients}`, `-d${seconds}s`, '--timeout', '30s', '-s', path]
    for (const header of headers) args.push('-H', header)
    const child = spawn('wrk', [...args, url], { stdio: ['ignore', 'pipe', 'inherit'] })
    let output = ''
    child.stdout.on('data', (chunk) => (output += chunk))
    await new Promise((resolve) => child.once('close', resolve))
    const line = /^RESULT (.*)$/m.exec(output)?.[1]
    if (line === undefined) throw new Error(`wrk said: ${output}`)
    const { requests, bytes, microseconds, p99, errors } = JSON.parse(line)
    if (errors > 0) throw new Error(`${errors} of ${requests} answers of ${url} were errors`)
    return {
      requests: (requests / microseconds) * 1e6,
      bytes: (bytes / microseconds) * 1e6,
      total: bytes,
      p99: p99 / 1000,
    }
  }
}
