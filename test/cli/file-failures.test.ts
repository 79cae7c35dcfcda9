import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmod, chown, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { anyPort } from '../support/command-env.ts'

const program = fileURLToPath(new URL('../../bin/run.js', import.meta.url))
const isRoot = process.getuid?.() === 0
/** An ordinary user, because root may use every file. */
const user = isRoot ? 65_534 : process.getuid?.()
const other = 54_321

let home: string
beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), 'mirror-files-'))
  if (user !== undefined) await chown(home, user, user)
})
afterEach(async () => {
  await rm(home, { recursive: true })
})

async function makeOwn(name: string, mode: number): Promise<string> {
  const path = join(home, name)
  await mkdir(path)
  if (user !== undefined) await chown(path, user, user)
  await chmod(path, mode)
  return path
}

async function mirror(args: string[], env: Record<string, string> = {}) {
  const child = spawn(process.execPath, [program, ...args], {
    env: { PATH: process.env['PATH'], HOME: home, DOCKER_HOST: `unix://${home}/none.sock`, ...anyPort, ...env },
    cwd: home,
    ...(isRoot && { uid: user!, gid: user! }),
  })
  let stderr = ''
  child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text))
  const [exit] = (await once(child, 'close')) as [number]
  return { exit, stderr }
}

describe.skipIf(process.platform !== 'linux')('a file that the system refuses', () => {
  test.skipIf(!isRoot)(
    "is reported with its owner and a next step when it belongs to another user's mirror",
    async () => {
      const foreignFolder = join(home, 'theirs')
      await mkdir(foreignFolder, { mode: 0o700 })
      await chown(foreignFolder, other, other)
      for (const args of [['status'], ['logs'], ['up'], ['down'], ['registry', 'ls'], ['cache', 'ls']]) {
        const { exit, stderr } = await mirror(args, { MIRROR_HOME: foreignFolder })
        expect(exit, stderr).not.toBe(0)
        expect(stderr, args.join(' ')).toContain(`no permission, because ${foreignFolder} belongs to user ${other}`)
        expect(stderr).toContain('unset MIRROR_HOME')
        expect(stderr).not.toContain('EACCES')
      }
    },
  )

  test('is reported by `mirror init` with the mode that helps', async () => {
    const closed = await makeOwn('closed', 0o500)
    const { exit, stderr } = await mirror(['init', '--yes'], { MIRROR_HOME: closed })
    expect(exit).toBe(1)
    expect(stderr).toContain(
      `Cannot open ${closed}/mirror.yaml: no permission, because the mode of ${closed} denies it.`,
    )
    expect(stderr).toContain(`  chmod u+w ${closed}\n`)
  })

  test('is reported with the mode that helps when it is the state folder', async () => {
    const closed = await makeOwn('closed', 0o500)
    const { exit, stderr } = await mirror(['up'], { MIRROR_HOME: closed })
    expect(exit).toBe(1)
    expect(stderr).toContain(`Cannot create the folder ${closed}/state: no permission, because the mode of ${closed}`)
    expect(stderr).toContain(`  chmod u+w ${closed}\n`)
    expect(stderr).not.toContain('--data')
  })

  test('is reported with the mode that helps when it is the data folder', async () => {
    const data = await makeOwn('rx', 0o500)
    const { exit, stderr } = await mirror(['up', '--data', data])
    expect(exit).toBe(1)
    expect(stderr).toContain(`  chmod u+w ${data}\n`)
    expect(stderr).not.toContain('chown')
  })

  test.skipIf(!isRoot)('is reported with a chown only when it lies in a folder of the user', async () => {
    const parent = join(home, 'parent')
    await mkdir(parent, { mode: 0o755 })
    const { stderr } = await mirror(['up', '--data', parent])
    expect(stderr).toContain(`no permission, because ${parent} belongs to root`)
    expect(stderr).not.toContain('chown')

    const data = await makeOwn('data', 0o700)
    await mkdir(join(data, 'cache'), { mode: 0o700 })
    const foreign = await mirror(['up', '--data', data])
    expect(foreign.stderr).toContain(
      `the folder ${data}/cache for the store: no permission, because it belongs to root`,
    )
    expect(foreign.stderr).toContain(`  sudo chown -R "$(id -un)": ${data}/cache   (if it should be yours)\n`)
  })

  test('is named with the reason when it is the configuration file and is missing or below a file', async () => {
    const absent = await mirror(['up', '--config', 'absent.yaml'])
    expect(absent.exit).toBe(2)
    expect(absent.stderr).toContain(`The configuration file ${home}/absent.yaml does not exist.`)
    expect(absent.stderr).not.toContain('ENOENT')
    await writeFile(join(home, 'file'), '')
    const below = await mirror(['up', '--config', 'file/mirror.yaml'])
    expect(below.stderr).toContain('cannot be read: a file is in the way of a folder.')
    expect(below.stderr).not.toContain('ENOTDIR')
  })

  test('is named with the reason when it is a certificate of the configuration and is missing', async () => {
    await writeFile(join(home, 'mirror.yaml'), 'tls: {cert: ./tls.crt, key: ./tls.key}\n')
    const { exit, stderr } = await mirror(['up', '--config', 'mirror.yaml'])
    expect(exit).toBe(2)
    expect(stderr).toContain(`"tls" cannot be used: ${home}/tls.crt: it does not exist. Nothing was done.`)
    expect(stderr).not.toContain('ENOENT')
  })
})
