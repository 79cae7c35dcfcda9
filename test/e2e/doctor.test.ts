import { readFile, readdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, inject, onTestFinished, test } from 'vitest'
import type { CheckResult, DoctorReport } from '../../src/admin/activity.ts'
import { startApart } from './support/apart.ts'
import { runMirror } from './support/configure.ts'
import { startDaemon } from './support/daemon.ts'
import { dockerSocket, startDockerd } from './support/dockerd.ts'
import { createCluster, type KindHost, pullInNode, startKindHost } from './support/kind.ts'
import { runnableImage } from './support/runnable-image.ts'
import { type Scene, startScene } from './support/scene.ts'
import { searchPath } from './support/search-path.ts'

const { missing, newer } = inject('e2e')

const content = async () => ({ 'library/runnable': { one: await runnableImage(71, 'oci') } })
const kindFolder = '/etc/containerd/certs.d/_default/hosts.toml'
const findings = ({ results }: DoctorReport) => results.filter(({ state }) => state === 'warn' || state === 'fail')
const ids = (results: readonly CheckResult[]) => results.map(({ id }) => id)

/** Records commands and their output as a terminal shows them. */
class Session {
  readonly lines: string[] = []

  add(command: string, output: string): void {
    this.lines.push(`$ ${command}`, ...(output === '' ? [] : output.trimEnd().split('\n')), '')
  }

  /** Writes the session to docs/doctor.md when MIRROR_RECORD_SESSION is set. */
  async save(): Promise<void> {
    if (!process.env['MIRROR_RECORD_SESSION']) return
    const file = new URL('../../docs/doctor.md', import.meta.url)
    const text = await readFile(file, 'utf8')
    const session = `<!-- session -->\n\`\`\`\n${this.lines.join('\n').trimEnd()}\n\`\`\`\n<!-- end -->`
    await writeFile(
      file,
      text.replace(/<!-- session -->[\s\S]*?<!-- end -->/, () => session),
    )
  }
}

async function startKindScene(): Promise<{ scene: Scene; host: KindHost; node: string }> {
  const scene = await startScene({
    registries: ['docker.io'],
    content: await content(),
    networks: ['kind'],
    registry: true,
    env: (folder) => ({ DOCKER_HOST: `unix://${dockerSocket(folder)}` }),
  })
  const host = await startKindHost(scene, { docker: '', containerd: '', kind: newer })
  const [node] = await createCluster(host, 'dev', '')
  await expect
    .poll(async () => (await scene.mirror.status()).endpoints.networks, { timeout: 15_000, interval: 200 })
    .toHaveProperty('kind')
  return { scene, host, node: node! }
}

describe.skipIf(missing !== undefined)('mirror doctor', () => {
  test('finds what keeps a kind cluster from the mirror, and its commands mend it', async () => {
    const { scene, host, node } = await startKindScene()
    const session = new Session()
    const runHere = (line: string, enter = scene.namespace.enter) =>
      runMirror(scene, { enter, env: host.env }, ...line.split(' ').slice(1))
    // Lets stdout and stderr arrive in their order, as in a terminal.
    const merge = (command: readonly string[]) =>
      scene.namespace.enter(['sh', '-c', 'exec "$@" 2>&1', 'sh', ...command])
    const record = async (line: string) => {
      const result = await runHere(line, merge)
      session.add(line.replace(' --timeout 60s', ''), result.stdout)
      return result
    }
    // Give a busy machine more time than the default.
    const doctor = 'mirror doctor kind --only clients,listeners --timeout 60s'
    const examine = async () => JSON.parse((await runHere(`${doctor} --json`)).stdout) as DoctorReport
    const expectWell = async () => {
      const { exit, stdout } = await record(doctor)
      expect(stdout).toMatch(/^Everything is well: \d+ checks/m)
      expect(exit).toBe(0)
    }
    const exec = (script: string) => host.docker('exec', node, 'bash', '-c', script)

    const untouched = findings(await examine())
    expect(untouched.map(({ id, state }) => [id, state])).toEqual([['clients.configured', 'warn']])
    const configure = 'mirror configure kind --cluster dev'
    for (const { fix } of untouched) expect(fix).toEqual({ command: configure, isOwn: false })
    expect(await runHere(`${configure} --yes`)).toMatchObject({ exit: 0 })
    await expectWell()

    await exec(`rm ${kindFolder}`)
    const gone = findings(await examine())
    expect(ids(gone).toSorted()).toEqual(['clients.files', 'clients.kind.hosts'])
    for (const { fix } of gone) expect(fix).toEqual({ command: configure, isOwn: true })
    session.add(`docker exec ${node} rm ${kindFolder}`, '')
    const mended = await record(`${doctor} --fix --yes`)
    expect(mended, mended.stdout).toMatchObject({
      exit: 0,
      stdout: expect.stringContaining('Mended: clients.kind.hosts'),
    })
    await expectWell()

    await exec(`echo '[host."http://127.0.0.1:1"]' >> ${kindFolder}; echo 'capabilities = ["fetch"]' >> ${kindFolder}`)
    const unknown = findings(await examine())
    expect(ids(unknown)).toContain('clients.hosts.capability')
    expect(await runHere(`${doctor} --fix --yes`)).toMatchObject({ exit: 0 })
    expect(findings(await examine())).toEqual([])

    await exec(`cat ${kindFolder} ${kindFolder} > /tmp/twice; cat /tmp/twice > ${kindFolder}`)
    const twice = findings(await examine())
    expect(ids(twice)).toContain('clients.hosts.syntax')
    session.add(`docker exec ${node} sh -c 'cat ${kindFolder} >> ${kindFolder}'`, '')
    expect(await record(`${doctor} --fix --yes`)).toMatchObject({ exit: 0 })

    await exec(`grep -v config_path /etc/containerd/config.toml > /tmp/c; cat /tmp/c > /etc/containerd/config.toml`)
    await exec('systemctl restart containerd')
    const unread = findings(await examine())
    expect(unread.find(({ id }) => id === 'clients.containerd.config-path')).toMatchObject({
      state: 'fail',
      fix: { command: configure, isOwn: false },
    })
    session.add(`docker exec ${node} sed -i /config_path/d /etc/containerd/config.toml`, '')
    session.add(`docker exec ${node} systemctl restart containerd`, '')
    expect(await record(doctor)).toMatchObject({ exit: 5 })
    expect(await record(`${configure} --yes`)).toMatchObject({ exit: 0 })
    await expectWell()

    const state = join(scene.folder, 'mirror', 'state', 'configured')
    for (const name of await readdir(state)) {
      const text = await readFile(join(state, name), 'utf8')
      await writeFile(join(state, name), text.replace(/("cache": "http:[^"]*):5055/, '$1:6055'))
    }
    await exec(
      `sed -i s/5055/6055/ ${kindFolder} || { t=$(cat ${kindFolder}); echo "\${t//5055/6055}" > ${kindFolder}; }`,
    )
    const stale = findings(await examine())
    expect(stale.find(({ id }) => id === 'clients.address')).toMatchObject({
      state: 'fail',
      fix: { command: configure },
    })
    expect(await runHere(`${configure} --yes`)).toMatchObject({ exit: 0 })
    expect(findings(await examine())).toEqual([])
    await pullInNode(host, node, 'docker.io/library/runnable:one')
    const proof = await runHere('mirror doctor kind --only clients.pull --pull')
    expect(proof, proof.stdout).toMatchObject({ exit: 0 })
    await session.save()
  })

  test('finds a dockerd that has not read its daemon.json, and its command mends that', async () => {
    const scene = await startScene({ registries: ['docker.io'], content: await content() })
    const dockerd = await startDockerd(scene, '', {})
    const env = { PATH: searchPath(''), DOCKER_HOST: `unix://${dockerSocket(scene.folder)}` }
    const mirror = (...args: string[]) => runMirror(scene, { enter: dockerd.enter, env }, ...args)
    const examine = async () =>
      JSON.parse(
        (await mirror('doctor', 'docker', '--only', 'clients', '--timeout', '60s', '--json')).stdout,
      ) as DoctorReport

    expect(findings(await examine())).toMatchObject([{ id: 'clients.configured', state: 'warn' }])
    expect(await mirror('configure', 'docker', '--yes')).toMatchObject({ exit: 0 })
    const unread = findings(await examine())
    expect(unread).toMatchObject([
      { id: 'clients.running', state: 'fail', fix: { command: 'mirror configure docker --reload', isOwn: false } },
    ])
    expect(await mirror('configure', 'docker', '--reload', '--yes')).toMatchObject({ exit: 0 })
    // BuildKit of Docker 20.10 keeps the mirrors of the start of dockerd.
    expect(findings(await examine())).toMatchObject([
      {
        id: 'clients.running',
        state: 'warn',
        saw: expect.stringContaining('docker build (BuildKit) bypasses'),
        fix: { command: 'systemctl restart docker', isOwn: false },
      },
    ])
    await dockerd.restart()
    expect(findings(await examine())).toEqual([])
  })

  test('finds a file that replaces the tables of the mirror for podman, and its command mends that', async () => {
    const scene = await startScene({ registries: ['docker.io'], content: await content() })
    const apart = await startApart(scene, searchPath(''))
    const examine = async () =>
      JSON.parse(
        (await apart.mirror('doctor', 'podman', '--only', 'clients', '--timeout', '60s', '--json')).stdout,
      ) as DoctorReport

    expect(await apart.mirror('configure', 'podman', '--yes')).toMatchObject({ exit: 0 })
    expect(findings(await examine())).toEqual([])
    const text = '[[registry]]\nprefix = "docker.io"\nlocation = "docker.io"\n'
    await apart.run('sh', '-c', 'printf %s "$1" > /etc/containers/registries.conf.d/90-user.conf', 'sh', text)
    const overridden = findings(await examine()).find(({ id }) => id === 'clients.podman.overridden')
    expect(overridden).toMatchObject({ state: 'fail', fix: { command: 'mirror configure podman --scope system' } })
    expect(await apart.mirror('configure', 'podman', '--scope', 'system', '--yes')).toMatchObject({ exit: 0 })
    expect(findings(await examine())).toEqual([])
  })

  test('finds a registries.conf that podman refuses, whose own message it carries', async () => {
    const scene = await startScene({ registries: ['docker.io'], content: await content() })
    const apart = await startApart(scene, searchPath(''))
    const file = '/etc/containers/registries.conf.d/90-user.conf'
    const examine = async () =>
      JSON.parse(
        (await apart.mirror('doctor', 'podman', '--only', 'clients', '--timeout', '60s', '--json')).stdout,
      ) as DoctorReport
    expect(await apart.mirror('configure', 'podman', '--yes')).toMatchObject({ exit: 0 })
    const refused = {
      '[[registry]]\nprefix = "https://docker.io"\n': 'URI schemes are not supported',
      'short-name-mode = "sometimes"\n': 'invalid short-name mode',
      '[[registry]]\nlocation = 5\n': 'incompatible types',
      '[[registry]]\nprefix = "docker.io"\nblocked = true\n': 'location is unset',
    }
    for (const [text, why] of Object.entries(refused)) {
      await apart.run('sh', '-c', 'printf %s "$1" > "$2"', 'sh', text, file)
      const found = findings(await examine()).filter(({ id }) => id === 'clients.running')
      expect(found, text).toEqual([
        expect.objectContaining({
          state: 'fail',
          saw: expect.stringMatching(new RegExp(`^podman info fails: .*${why}`)),
          advice: `Correct ${file}, then run mirror doctor again.`,
        }),
      ])
    }
    await apart.run('rm', file)
    expect(findings(await examine())).toEqual([])
  })

  test('finds a containerd that does not read the files of the mirror', async () => {
    const scene = await startScene({ registries: ['docker.io'], content: await content() })
    const apart = await startApart(scene, searchPath(''))
    const folders = `version = 2\nroot = "${join(scene.folder, 'root')}"\nstate = "${join(scene.folder, 'state')}"\n`
    const write = (more: string) =>
      apart.run(
        'sh',
        '-c',
        'mkdir -p /etc/containerd; printf %s "$1" > /etc/containerd/config.toml',
        'sh',
        folders + more,
      )
    const start = async () => {
      const daemon = await startDaemon({
        command: apart.enter(['/usr/bin/containerd']),
        env: { PATH: searchPath('') },
        logFile: join(scene.folder, 'containerd.log'),
        ready: () => apart.run('/usr/bin/ctr', 'version'),
      })
      onTestFinished(daemon.stop)
      return daemon
    }
    const examine = async () =>
      JSON.parse(
        (await apart.mirror('doctor', 'containerd', '--only', 'clients', '--timeout', '60s', '--json')).stdout,
      ) as DoctorReport

    await write('')
    const first = await start()
    expect(await apart.mirror('configure', 'containerd', '--yes')).toMatchObject({ exit: 0 })
    expect(ids(findings(await examine()))).toContain('clients.containerd.config-path')
    await first.stop()
    await write('[plugins."io.containerd.grpc.v1.cri".registry]\n  config_path = "/etc/containerd/certs.d"\n')
    await start()
    expect(findings(await examine())).toEqual([])
  })
})
