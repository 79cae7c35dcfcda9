import { describe, expect, test } from 'vitest'
import { mirrorPaths } from '../../../src/config/paths.ts'

const linux = { platform: 'linux', env: {}, homedir: '/home/me', cwd: '/place' } as const

describe('the paths of a mirror', () => {
  test('on Linux are those of XDG', () => {
    expect(mirrorPaths(linux)).toEqual({
      configFile: '/home/me/.config/mirror/mirror.yaml',
      configFileNamed: false,
      dataDir: '/home/me/.local/share/mirror',
      stateDir: '/home/me/.local/state/mirror',
      logFile: '/home/me/.local/state/mirror/mirror.log',
      stateFile: '/home/me/.local/state/mirror/mirror.json',
      tokenFile: '/home/me/.local/state/mirror/token',
    })
  })

  test('on Linux follow XDG variables, but not relative ones', () => {
    const env = { XDG_CONFIG_HOME: '/conf', XDG_DATA_HOME: 'data', XDG_STATE_HOME: '' }
    expect(mirrorPaths({ ...linux, env })).toMatchObject({
      configFile: '/conf/mirror/mirror.yaml',
      dataDir: '/home/me/.local/share/mirror',
      stateDir: '/home/me/.local/state/mirror',
    })
  })

  test('on macOS lie in Application Support', () => {
    expect(mirrorPaths({ ...linux, platform: 'darwin', homedir: '/Users/me' })).toMatchObject({
      configFile: '/Users/me/Library/Application Support/mirror/mirror.yaml',
      dataDir: '/Users/me/Library/Application Support/mirror/data',
      stateFile: '/Users/me/Library/Application Support/mirror/state/mirror.json',
    })
  })

  test('on Windows lie in LOCALAPPDATA', () => {
    const input = { platform: 'win32', homedir: 'C:\\Users\\me', cwd: 'C:\\' } as const
    expect(mirrorPaths({ ...input, env: {} }).dataDir).toBe('C:\\Users\\me\\AppData\\Local\\mirror\\data')
    expect(mirrorPaths({ ...input, env: { LOCALAPPDATA: 'D:\\Local' } }).configFile).toBe(
      'D:\\Local\\mirror\\mirror.yaml',
    )
  })

  test.each(['linux', 'darwin'] as const)('on %s are all below MIRROR_HOME when it is set', (platform) => {
    expect(mirrorPaths({ ...linux, platform, env: { MIRROR_HOME: 'here', XDG_DATA_HOME: '/data' } })).toMatchObject({
      configFile: '/place/here/mirror.yaml',
      dataDir: '/place/here/data',
      logFile: '/place/here/state/mirror.log',
    })
  })

  test('change one by one with MIRROR_CONFIG and MIRROR_DATA', () => {
    const env = { MIRROR_HOME: '/m', MIRROR_CONFIG: 'my.yaml', MIRROR_DATA: '/big/disk' }
    expect(mirrorPaths({ ...linux, env })).toMatchObject({
      configFile: '/place/my.yaml',
      configFileNamed: true,
      dataDir: '/big/disk',
      stateDir: '/m/state',
    })
  })
})
