import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { filesOf } from '../support/blob-file.ts'
import { startCdn } from '../support/cdn.ts'
import { expectContent } from '../support/expect-content.ts'
import { cutAt, inTurn, redirect, status } from '../support/faults.ts'
import { get } from '../support/get.ts'
import { temporaryHome } from '../support/mirror.ts'
import { app, startScene } from '../support/scene.ts'
import { anyBlob, anyManifest } from '../support/upstream.ts'

test('no password, token or signed URL appears in log, status, metrics, errors or files', async () => {
  const password = 'correct-horse-battery'
  const passwordFile = join(await temporaryHome(), 'password')
  await writeFile(passwordFile, password, { mode: 0o600 })
  const { upstream, mirror, image, layer, layerBytes } = await startScene({
    auth: { scheme: 'bearer', users: { puller: password }, private: ['library/app'] },
    upstream: { credentials: { from: 'password-file', username: 'puller', passwordFile } },
  })
  const cdn = await startCdn()
  upstream.on(
    anyBlob,
    redirect(() => cdn.sign(layerBytes)),
  )
  cdn.on({}, inTurn(status(503), cutAt(1000), cutAt(2000, 'reset')))

  const answers = [
    await mirror.get(`${app}/manifests/v1`),
    await mirror.get(`${app}/blobs/${layer}`),
    await mirror.get(`${app}/blobs/${layer}?X-Amz-Signature=signature-of-a-client&token=token-of-a-client`),
  ]
  expectContent(answers[0]!, image.digest)
  expectContent(answers[1]!, layer)
  for (const code of [401, 403, 429, 500]) {
    upstream.on(anyManifest, status(code, { 'www-authenticate': 'Bearer realm="http://169.254.169.254/"' }))
    answers.push(await mirror.get(`${app}/manifests/t${code}`))
  }
  upstream.heal()
  cdn.on({}, status(400, {}, 'no'))
  upstream.on(
    anyBlob,
    redirect(() => 'http://user:password-in-url@169.254.169.254/?X-Amz-Signature=signature-of-a-target'),
  )
  const unheld = [...image.blobs.keys()].find((digest) => digest !== layer)!
  answers.push(await mirror.get(`${app}/blobs/${unheld}`))
  answers.push(await get(mirror.adminUrl, '/api/status'), await get(mirror.adminUrl, '/metrics'))
  await mirror.close()

  const tokens = upstream.requests.flatMap(
    ({ headers }) => /^Bearer (.+)$/.exec(headers.authorization ?? '')?.[1] ?? [],
  )
  const basic = Buffer.from(`puller:${password}`).toString('base64')
  const signatures = cdn.requests.map(({ path }) => new URL(path, cdn.url).searchParams.get('X-Amz-Signature')!)
  const secrets = [
    password,
    basic,
    ...new Set(tokens),
    ...signatures,
    'signature-of-a-client',
    'token-of-a-client',
    'password-in-url',
    'signature-of-a-target',
  ]
  expect(tokens.length).toBeGreaterThan(0)
  expect(signatures.length).toBeGreaterThan(2)

  const texts: [string, string][] = [
    ['the log', mirror.log.join('\n')],
    ...answers.map((answer, at): [string, string] => [
      `answer ${at}`,
      `${JSON.stringify(answer.headers)}${answer.body.toString('latin1')}`,
    ]),
  ]
  for (const file of await filesOf(mirror)) texts.push([file, await readFile(file, 'latin1')])
  for (const [place, text] of texts) {
    for (const secret of secrets) expect(text.includes(secret), `${secret} in ${place}`).toBe(false)
  }
})
