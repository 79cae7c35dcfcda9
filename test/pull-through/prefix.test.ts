import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, onTestFinished, test } from 'vitest'
import type { CredentialsConfig, UpstreamConfig } from '../../src/config/config.ts'
import { expectContent, expectError } from '../support/expect-content.ts'
import { status } from '../support/faults.ts'
import { makeImage } from '../support/images.ts'
import { startTestMirror, temporaryHome } from '../support/mirror.ts'
import { noise } from '../support/noise.ts'
import { startUpstream } from '../support/upstream.ts'
import type { AuthOptions } from '../support/upstream-auth.ts'

/** products are caches of companies, with their prefixes of `docker.io/library/app`. */
const products = [
  ['Harbor', 'hub'],
  ['Artifactory', 'docker-remote'],
  ['Amazon ECR', 'docker-hub'],
  ['GitLab', 'group/proj/dependency_proxy/containers'],
] as const

const image = makeImage({ layers: [noise(1000)] })
const [layer] = image.layers
const users = { ann: 'open-sesame' }

/** Starts a company's cache that has `library/app:v1` below a prefix, and a mirror whose docker.io it is. */
async function startScene(prefix: string, auth?: AuthOptions, upstream: Partial<UpstreamConfig> = {}) {
  const company = await startUpstream({ images: { [`${prefix}/library/app`]: { v1: image } }, ...(auth && { auth }) })
  const mirror = await startTestMirror({ upstreams: { 'docker.io': { url: company.url, prefix, ...upstream } } })
  return { company, mirror }
}

const paths = (requests: readonly { path: string }[]) => requests.map(({ path }) => decodeURIComponent(path))

describe.each(products)('an upstream like %s, below the prefix %s', (_, prefix) => {
  test('gets requests for manifests, blobs, tags and referrers below the prefix, and clients do not see it', async () => {
    const { company, mirror } = await startScene(prefix)
    const answers = [
      await mirror.get('/v2/library/app/manifests/v1'),
      await mirror.get('/v2/app/manifests/v1?ns=docker.io'),
      await mirror.get('/v2/docker.io/library/app/manifests/v1', { method: 'HEAD' }),
      await mirror.get(`/v2/library/app/blobs/${layer}`),
      await mirror.get('/v2/library/app/tags/list'),
      await mirror.get(`/v2/library/app/referrers/${image.digest}`),
    ]
    expect(answers.map((answer) => answer.status)).toEqual([200, 200, 200, 200, 200, 200])
    expectContent(answers[0]!, image.digest)
    expectContent(answers[3]!, layer!)
    expect(JSON.parse(answers[4]!.body.toString())).toEqual({ name: 'library/app', tags: ['v1'] })
    for (const path of paths(company.requests)) expect(path).toMatch(`/v2/${prefix}/library/app/`)
    for (const answer of answers) {
      expect(answer.headers['oci-namespace']).toBe('docker.io')
      expect(JSON.stringify(answer.headers)).not.toContain(prefix)
    }
    const { images, upstreams } = await mirror.status()
    expect(images.map(({ name }) => name)).toEqual(['docker.io/library/app:v1'])
    expect(Object.keys(upstreams)).toEqual(['docker.io'])
    const catalog = await mirror.get('/v2/_catalog')
    expect(JSON.parse(catalog.body.toString())).toEqual({ repositories: ['docker.io/library/app'] })
  })

  test('gets token requests for the name below the prefix', async () => {
    const { company, mirror } = await startScene(prefix, { scheme: 'bearer' })
    expectContent(await mirror.get('/v2/library/app/manifests/v1'), image.digest)
    const tokens = company.requests.filter(({ path }) => path.startsWith('/token'))
    expect(tokens.map(({ path }) => new URL(path, company.url).searchParams.get('scope'))).toEqual([
      `repository:${prefix}/library/app:pull`,
    ])
  })

  test('does not show its prefix in its error messages', async () => {
    const { company, mirror } = await startScene(prefix)
    const message = `artifact ${prefix}/library/app:v2 not found; did you mean ${prefix}/library/apps?`
    company.on({}, status(404, {}, JSON.stringify({ errors: [{ code: 'MANIFEST_UNKNOWN', message }] })))
    const answer = await mirror.get('/v2/library/app/manifests/v2')
    expectError(answer, 404, 'MANIFEST_UNKNOWN')
    expect(answer.body.toString()).toContain('artifact library/app:v2 not found; did you mean library/apps?')
  })
})

describe('an upstream below a prefix', () => {
  test('pages its tags with links that lead back to the mirror', async () => {
    const { company, mirror } = await startScene('hub')
    company.push('hub/library/app', 'v2', image)
    const { headers, body } = await mirror.get('/v2/docker.io/library/app/tags/list?n=1')
    expect(JSON.parse(body.toString())).toEqual({ name: 'library/app', tags: ['v1'] })
    expect(headers['link']).not.toContain('hub')
    const next = /<([^>]+)>/.exec(headers['link'] as string)![1]!
    expect(JSON.parse((await mirror.get(next)).body.toString())).toEqual({ name: 'library/app', tags: ['v2'] })
  })

  test('has its referrers tags below the prefix, too', async () => {
    const { company, mirror } = await startScene('hub')
    const signature = makeImage({ seed: 7 })
    company.push('hub/library/app', image.digest.replace(':', '-'), signature)
    expect((await mirror.get(`/v2/library/app/referrers/${image.digest}`)).status).toBe(200)
    expect(paths(company.requests).at(-1)).toContain(`/v2/hub/library/app/manifests/${image.digest.replace(':', '-')}`)
  })

  test('gets the prefetch requests below the prefix', async () => {
    const { company, mirror } = await startScene('hub')
    await mirror.get('/v2/library/app/manifests/v1')
    await mirror.get(`/v2/library/app/manifests/${image.digest}`)
    for (const digest of image.blobs.keys()) expectContent(await mirror.get(`/v2/library/app/blobs/${digest}`), digest)
    for (const path of paths(company.requests)) expect(path).toMatch(/^\/v2\/hub\/library\/app\//)
  })

  test('gets no request for the probe image', async () => {
    const { company, mirror } = await startScene('hub')
    const offer = JSON.parse((await mirror.post('/api/canary', {})).body.toString()) as { repository: string }
    expect((await mirror.get(`/v2/docker.io/${offer.repository}/manifests/check`)).status).toBe(200)
    expect(company.requests).toEqual([])
  })

  test('does not mix repositories of the same name with those of another upstream', async () => {
    const other = makeImage({ seed: 9 })
    const company = await startUpstream({ images: { 'hub/team/app': { v1: image }, 'quay/team/app': { v1: other } } })
    const mirror = await startTestMirror({
      upstreams: {
        'docker.io': { url: company.url, prefix: 'hub' },
        'quay.io': { url: company.url, prefix: 'quay' },
      },
    })
    expectContent(await mirror.get('/v2/docker.io/team/app/manifests/v1'), image.digest)
    expectContent(await mirror.get('/v2/quay.io/team/app/manifests/v1'), other.digest)
  })
})

describe('the credential for an upstream below a prefix', () => {
  /** Creates Docker's configuration with these logins, as `docker login` writes it. */
  async function dockerConfig(logins: Record<string, string>): Promise<CredentialsConfig> {
    const folder = join(await temporaryHome(), 'docker')
    await mkdir(folder)
    const auths = Object.entries(logins).map(([host, pair]) => [host, { auth: Buffer.from(pair).toString('base64') }])
    await writeFile(join(folder, 'config.json'), JSON.stringify({ auths: Object.fromEntries(auths) }))
    const before = process.env['DOCKER_CONFIG']
    process.env['DOCKER_CONFIG'] = folder
    onTestFinished(() => {
      if (before === undefined) delete process.env['DOCKER_CONFIG']
      else process.env['DOCKER_CONFIG'] = before
    })
    return { from: 'docker-config' }
  }
  const auth = { scheme: 'bearer', users, private: ['hub/library/app'] } as const

  test("is the company's", async () => {
    const company = await startUpstream({ images: { 'hub/library/app': { v1: image } }, auth })
    const credentials = await dockerConfig({
      [company.host]: 'ann:open-sesame',
      'https://index.docker.io/v1/': 'bob:of-the-hub',
    })
    const mirror = await startTestMirror({
      upstreams: { 'docker.io': { url: company.url, prefix: 'hub', credentials } },
    })
    expectContent(await mirror.get('/v2/library/app/manifests/v1'), image.digest)
  })

  test('is never the one for the registry that the upstream caches', async () => {
    const credentials = await dockerConfig({ 'https://index.docker.io/v1/': 'bob:of-the-hub' })
    const { company, mirror } = await startScene('hub', auth, { credentials })
    expectError(await mirror.get('/v2/library/app/manifests/v1'), 401)
    expect(company.requests.filter(({ headers }) => headers.authorization?.startsWith('Basic'))).toEqual([])
  })
})
