import { describe, expect, test } from 'vitest'
import { autostartSpec, autostartWarnings } from '../../../src/app/autostart-mirror.ts'
import { defaultConfig } from '../../../src/config/defaults.ts'
import { mirrorPaths } from '../../../src/config/paths.ts'

const specOf = (env: Record<string, string>) => {
  const surroundings = { platform: 'linux', env, homedir: '/home/me', cwd: '/place' } as const
  return autostartSpec('/opt/mirror/bin/run.js', surroundings, mirrorPaths(surroundings))
}

describe('what is started with the machine', () => {
  test('is this very program, with absolute places', () => {
    const spec = specOf({ MIRROR_HOME: 'here', MIRROR_CONFIG: 'my.yaml', MIRROR_DATA: '/big' })
    expect(spec.command).toEqual([process.execPath, '--max-semi-space-size=8', '/opt/mirror/bin/run.js', 'serve'])
    expect(spec.env).toEqual({ MIRROR_HOME: '/place/here', MIRROR_CONFIG: '/place/my.yaml', MIRROR_DATA: '/big' })
    expect(spec.logFile).toBe('/place/here/state/mirror.log')
  })

  test('keeps the settings, the way to upstreams and to Docker, and no other variables', () => {
    const env = {
      MIRROR_CACHE_PORT: '6055',
      MIRROR_CACHE_MAX_SIZE: '1GiB',
      MIRROR_NETWORKS: 'kind',
      https_proxy: 'http://proxy:3128',
      DOCKER_HOST: 'unix:///d.sock',
      PATH: '/bin',
    }
    expect(specOf({ ...env, CORP_PASSWORD: 'hunter2', MIRROR_PASSWORD: 'hunter2', MIRROR_JSON: '1' }).env).toEqual(env)
  })

  test('warns of a password that only the shell knows', () => {
    const upstream = { url: 'https://a.example', tokenHosts: [], ca: undefined, tagFreshness: undefined }
    const credentials = { from: 'password-env', username: 'me', passwordEnv: 'CORP_PASSWORD' } as const
    const config = { ...defaultConfig(), upstreams: { 'a.example': { ...upstream, credentials } } }
    expect(autostartWarnings(config)).toEqual([expect.stringContaining('CORP_PASSWORD')])
    expect(autostartWarnings(defaultConfig())).toEqual([])
  })
})
