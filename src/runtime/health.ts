import { get } from 'node:http'

/** Whether a mirror's admin listener answers there. */
export async function isHealthy(adminUrl: string, timeoutMs = 2000): Promise<boolean> {
  return new Promise((resolve) => {
    const request = get(new URL('/healthz', adminUrl), { agent: false, timeout: timeoutMs }, (response) => {
      response.resume()
      response.once('end', () => resolve(response.statusCode === 200))
    })
    request.once('timeout', () => request.destroy())
    request.once('error', () => resolve(false))
    request.once('close', () => resolve(false))
  })
}
