import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { exportCredentials } from '../../../../src/daemon/container/credentials.ts'
import { systemClock } from '../../../../src/lib/time.ts'
import { temporaryHome } from '../../../support/mirror.ts'

test("the credential of a company's cache is exported for a registry that it keeps below a prefix", async () => {
  const folder = join(await temporaryHome(), 'docker')
  await mkdir(folder)
  const auth = (pair: string) => ({ auth: Buffer.from(pair).toString('base64') })
  const auths = { 'harbor.corp.example': auth('ann:1'), 'https://index.docker.io/v1/': auth('bob:2') }
  await writeFile(join(folder, 'config.json'), JSON.stringify({ auths }))
  const upstream = {
    credentials: { from: 'docker-config' as const },
    tokenHosts: [],
    ca: undefined,
    tagFreshness: undefined,
  }
  const exportWithPrefix = (prefix: string | undefined) => {
    const upstreams = { 'docker.io': { ...upstream, url: 'https://harbor.corp.example', prefix } }
    return exportCredentials(['docker.io'], { upstreams }, { DOCKER_CONFIG: folder }, systemClock)
  }
  expect(JSON.parse(await exportWithPrefix('hub'))).toEqual({
    auths: { 'harbor.corp.example': auths['harbor.corp.example'] },
  })
  const direct = JSON.parse(await exportWithPrefix(undefined)) as { auths: object }
  expect(Object.keys(direct.auths)).toEqual(['https://index.docker.io/v1/'])
})
