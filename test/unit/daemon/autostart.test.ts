import { describe, expect, test } from 'vitest'
import { createAutostartSpec, getAutostartWarnings } from '../../../src/daemon/autostart.ts'
import { defaultConfig } from '../../../src/config/config.ts'
import { mirrorPaths } from '../../../src/config/paths.ts'

const surroundingsOf = (env: Record<string, string>) =>
  ({ platform: 'linux', env, homedir: '/home/me', cwd: '/place' }) as const
const specOf = (env: Record<string, string>, secrets = true) => {
  const surroundings = surroundingsOf(env)
  return createAutostartSpec('/opt/mirror/bin/run.js', surroundings, mirrorPaths(surroundings), { secrets })
}
const warningsOf = (env: Record<string, string>, config = defaultConfig()) =>
  getAutostartWarnings(config, surroundingsOf(env), '/unit')

describe('the command of autostart', () => {
  test('is this program with absolute paths', () => {
    const spec = specOf({ MIRROR_HOME: 'here', MIRROR_CONFIG: 'my.yaml', MIRROR_DATA: '/big' })
    expect(spec.command).toEqual([process.execPath, '--max-semi-space-size=8', '/opt/mirror/bin/run.js', 'serve'])
    expect(spec.env).toEqual({ MIRROR_HOME: '/place/here', MIRROR_CONFIG: '/place/my.yaml', MIRROR_DATA: '/big' })
    expect(spec.logFile).toBe('/place/here/state/mirror.log')
  })

  test('keeps variables of settings, proxies, Docker and credentials, and no others', () => {
    const env = {
      MIRROR_CACHE_PORT: '6055',
      MIRROR_CACHE_MAX_SIZE: '1GiB',
      MIRROR_NETWORKS: 'kind',
      https_proxy: 'http://proxy:3128',
      ALL_PROXY: 'http://proxy:3128',
      NO_PROXY: 'corp.example',
      DOCKER_HOST: 'unix:///d.sock',
      DOCKER_CONTEXT: 'colima',
      DOCKER_CONFIG: '/home/me/docker',
      XDG_CONFIG_HOME: '/home/me/.config',
      PATH: '/bin',
      HOME: '/home/me',
      NODE_EXTRA_CA_CERTS: '/etc/corp.pem',
      NODE_USE_SYSTEM_CA: '1',
      SSL_CERT_FILE: '/etc/ssl/cert.pem',
      REQUESTS_CA_BUNDLE: '/etc/corp.pem',
      AWS_PROFILE: 'dev',
      AWS_REGION: 'eu-central-1',
      AWS_ACCESS_KEY_ID: 'AKIA',
      AWS_SECRET_ACCESS_KEY: 'hunter2',
      AZURE_CLIENT_ID: 'me',
      GOOGLE_APPLICATION_CREDENTIALS: '/keys/g.json',
      CLOUDSDK_CORE_PROJECT: 'p',
      DOCKER_AUTH_CONFIG: '{"auths":{}}',
      PASSWORD_STORE_DIR: '/home/me/pass',
    }
    const others = {
      CORP_PASSWORD: 'hunter2',
      MIRROR_PASSWORD: 'hunter2',
      MIRROR_JSON: '1',
      SHELL: '/bin/sh',
      AWS: 'x',
    }
    expect(specOf({ ...env, ...others }).env).toEqual(env)
  })

  test('makes paths absolute that were relative to the working folder', () => {
    const env = {
      NODE_EXTRA_CA_CERTS: 'corp.pem',
      SSL_CERT_DIR: 'certs:/etc/ssl/certs',
      GOOGLE_APPLICATION_CREDENTIALS: './g.json',
      AWS_CONFIG_FILE: '~/aws',
      AWS_SHARED_CREDENTIALS_FILE: '../aws',
      DOCKER_CONFIG: 'docker',
      MIRROR_TLS_CERT: './tls.crt',
    }
    expect(specOf(env).env).toEqual({
      NODE_EXTRA_CA_CERTS: '/place/corp.pem',
      SSL_CERT_DIR: '/place/certs:/etc/ssl/certs',
      GOOGLE_APPLICATION_CREDENTIALS: '/place/g.json',
      AWS_CONFIG_FILE: '~/aws',
      AWS_SHARED_CREDENTIALS_FILE: '/aws',
      DOCKER_CONFIG: '/place/docker',
      MIRROR_TLS_CERT: '/place/tls.crt',
    })
  })

  test('keeps options of Node about trusted certificates, and none of a debugger', () => {
    const NODE_OPTIONS = '--require /tmp/vscode/bootloader.js --use-system-ca --inspect=9229 --tls-min-v1.2'
    expect(specOf({ NODE_OPTIONS }).env).toEqual({ NODE_OPTIONS: '--use-system-ca --tls-min-v1.2' })
    expect(specOf({ NODE_OPTIONS: '--inspect' }).env).toEqual({})
  })

  test('keeps no credential that expires within hours, and warns about it', () => {
    const env = { AWS_PROFILE: 'dev', AWS_ACCESS_KEY_ID: 'ASIA', AWS_SECRET_ACCESS_KEY: 'x', AWS_SESSION_TOKEN: 'y' }
    expect(specOf(env).env).toEqual({ AWS_PROFILE: 'dev' })
    const warnings = warningsOf(env).join('\n')
    for (const name of ['AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY', 'AWS_SESSION_TOKEN'])
      expect(warnings).toContain(`${name} will not be there after a reboot`)
  })

  test('keeps secrets in the service file, which a warning names, and not in a printed file', () => {
    const env = { AWS_SECRET_ACCESS_KEY: 'hunter2', HTTPS_PROXY: 'http://me:hunter2@proxy:3128', AWS_PROFILE: 'dev' }
    expect(specOf(env).env).toEqual(env)
    expect(warningsOf(env)).toEqual(['/unit holds AWS_SECRET_ACCESS_KEY and HTTPS_PROXY; only you can read it'])
    expect(specOf(env, false).env).toEqual({ AWS_PROFILE: 'dev' })
  })

  test('keeps no value that the file cannot hold, and no switch that disables certificate checks', () => {
    const env = { AWS_PROFILE: 'a\u0007b', NODE_TLS_REJECT_UNAUTHORIZED: '0' }
    expect(specOf(env).env).toEqual({})
    expect(warningsOf(env)).toEqual([
      'AWS_PROFILE will not be there after a reboot: it holds control characters',
      expect.stringContaining('NODE_TLS_REJECT_UNAUTHORIZED will not be there'),
    ])
  })

  test('warns about a password that only a shell variable holds', () => {
    const upstream = { url: 'https://a.example', tokenHosts: [], ca: undefined, tagFreshness: undefined }
    const credentials = { from: 'password-env', username: 'me', passwordEnv: 'CORP_PASSWORD' } as const
    const config = { ...defaultConfig(), upstreams: { 'a.example': { ...upstream, credentials } } }
    expect(warningsOf({}, config)).toEqual([expect.stringContaining('CORP_PASSWORD')])
    expect(warningsOf({})).toEqual([])
  })
})
