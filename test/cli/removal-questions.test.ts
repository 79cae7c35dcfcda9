import { execFile } from 'node:child_process'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { computeDigest } from '../../src/oci/reference.ts'
import { commandEnv } from '../support/command-env.ts'
import { runInTerminal, whyNoTerminal } from '../support/terminal.ts'

const program = fileURLToPath(new URL('../../bin/run.js', import.meta.url))
const question = 'Remove this from the registry?'

describe.skipIf(whyNoTerminal() !== undefined)('on a terminal, a pushed image', () => {
  let home: string
  let base: string
  beforeAll(async () => {
    home = await mkdtemp(join(tmpdir(), 'mirror-removal-'))
    base = (JSON.parse(await inPipe('up', '--json')) as { endpoints: { registry: string[] } }).endpoints.registry[0]!
  })
  afterAll(async () => {
    await inPipe('down')
    await rm(home, { recursive: true })
  })

  async function inPipe(...args: string[]): Promise<string> {
    const env = commandEnv(home)
    return (await promisify(execFile)(process.execPath, [program, ...args], { env, cwd: home })).stdout
  }

  async function push(repository: string, ...tags: string[]): Promise<void> {
    const config = Buffer.from('{}')
    const upload = `${base}/v2/${repository}/blobs/uploads/?digest=${computeDigest(config)}`
    expect((await fetch(upload, { method: 'POST', body: config })).status).toBe(201)
    const descriptor = { mediaType: 'application/x', digest: computeDigest(config), size: 2 }
    const type = 'application/vnd.oci.image.manifest.v1+json'
    for (const tag of tags) {
      const body = JSON.stringify({
        schemaVersion: 2,
        mediaType: type,
        config: descriptor,
        layers: [],
        artifactType: tag,
      })
      const put = { method: 'PUT', body, headers: { 'content-type': type } }
      expect((await fetch(`${base}/v2/${repository}/manifests/${tag}`, put)).status).toBe(201)
    }
  }

  const list = async () =>
    (JSON.parse(await inPipe('registry', 'ls', '--json')) as { name: string }[]).map(({ name }) => name)

  test.each([
    ['named exactly', ['rm', 'team/app:1']],
    ['that is the only match of a pattern', ['rm', 'team/*']],
    ['of a repository', ['rm', 'team/app']],
    ['that is old', ['prune', '--older-than', '0s', '--keep', '0']],
  ])('%s is removed only after a yes, and the Enter key means no', async (_, args) => {
    await push('team/app', '1')
    const run = (keys: string) =>
      runInTerminal([process.execPath, program, 'registry', ...args], {
        columns: 100,
        cwd: home,
        env: commandEnv(home),
        answers: [[question, keys]],
      })
    const refused = await run('\r')
    expect(refused.text).toMatch(/Would remove: 1 image[^]*team\/app:1[^]*\(y\/N\)[^]*Nothing was done\./)
    expect(await list()).toEqual(['team/app:1'])
    expect((await run('y\r')).text).toContain('Removed: 1 image')
    expect(await list()).toEqual([])
  })

  test('is removed with --yes and in a pipe without a question', async () => {
    await push('team/app', '1', '2')
    const options = { columns: 100, cwd: home, env: commandEnv(home) }
    const agreed = await runInTerminal([process.execPath, program, 'registry', 'rm', 'team/app:1', '--yes'], options)
    expect(agreed.text).not.toContain(question)
    expect(await list()).toEqual(['team/app:2'])
    expect(await inPipe('registry', 'rm', 'team/app:2')).toContain('Removed: 1 image')
  })

  test('that is not there is reported without a question', async () => {
    const options = { columns: 100, cwd: home, env: commandEnv(home) }
    const { exit, text } = await runInTerminal([process.execPath, program, 'registry', 'rm', 'none:1'], options)
    expect(exit).toBe(2)
    expect(text).not.toContain(question)
  })
})
