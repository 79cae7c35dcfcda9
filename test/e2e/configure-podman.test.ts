import { mkdir, readFile, readdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, inject, onTestFinished, test, type TestContext } from 'vitest'
import { type Apart, startApart } from './support/apart.ts'
import { startDaemon } from './support/daemon.ts'
import { newerPodman } from './support/newer-podman.ts'
import { runnableImage } from './support/runnable-image.ts'
import { type Scene, startScene } from './support/scene.ts'

const { missing } = inject('e2e')

const dropIns = '/etc/containers/registries.conf.d'
const registries = ['docker.io', 'quay.io', 'registry.corp.example:8443']
const references = ['docker.io/library/app:one', 'quay.io/org/app:one', 'registry.corp.example:8443/org/app:one']

// Avoids the defaults of podman, which need systemd's journal and cgroups.
const containersConf = '[engine]\nevents_logger = "file"\ncgroup_manager = "cgroupfs"\nruntime = "runc"\n'

const systemPath = '/usr/sbin:/usr/bin:/sbin:/bin'

/** pulls has the command line of a pull for each program; the first installed one also pulls for `--check`. */
const pulls = {
  podman: (reference: string) => ['podman', 'pull', '--quiet', reference],
  buildah: (reference: string) => ['buildah', 'pull', '--quiet', reference],
  skopeo: (reference: string, folder: string) => ['skopeo', 'copy', `docker://${reference}`, `dir:${folder}`],
}
type Program = keyof typeof pulls

interface Machine {
  scene: Scene
  apart: Apart
  /** Pulls with the program. */
  pull(reference: string): Promise<string>
}

/** Sets up a machine on which `mirror` finds one program only: this Debian's own, or that of the Debian below `root`. */
async function machineWith(program: Program, root: string, tls?: readonly string[]): Promise<Machine> {
  const image = await runnableImage(1, 'oci')
  const content = { 'library/app': { one: image }, 'org/app': { one: image } }
  const scene = await startScene({ content, registries, ...(tls && { tls }) })
  const programs = join(scene.folder, 'programs')
  await mkdir(programs)
  const command = root === '' ? `/usr/bin/${program}` : `/usr/sbin/chroot ${root} ${program}`
  const wrapper = `#!/bin/sh\nPATH=${systemPath} exec ${command} "$@"\n`
  await writeFile(join(programs, program), wrapper, { mode: 0o755 })
  const apart = await startApart(scene, programs)
  await apart.run('sh', '-c', `cat > /etc/containers/containers.conf <<'END'\n${containersConf}END`)
  if (root !== '') await apart.run('sh', '-c', asRoot(root))
  return {
    scene,
    apart,
    pull(reference) {
      const [name, ...args] = pulls[program](reference, join(scene.folder, 'pulled'))
      return apart.run(join(programs, name!), ...args)
    },
  }
}

/** Returns a script that prepares a folder for chroot, with this machine's podman configuration. */
function asRoot(root: string): string {
  return [
    'set -e',
    `mount --bind ${root} ${root}`,
    `mount -t proc proc ${root}/proc`,
    ...['/sys', '/dev', '/tmp'].map((folder) => `mount --rbind ${folder} ${root}${folder}`),
    `mount -t tmpfs tmpfs ${root}/run`,
    `mount -t tmpfs tmpfs ${root}/var/lib/containers`,
    `mount --bind /etc/containers ${root}/etc/containers`,
  ].join('\n')
}

async function expectConfigured(program: Program, root: string, tls?: readonly string[]): Promise<void> {
  const { scene, apart, pull } = await machineWith(program, root, tls)
  const before = await readdir(apart.outside(dropIns))

  expect(await apart.mirror('configure', 'podman', '--check')).toMatchObject({ exit: 5 })
  const configured = await apart.mirror('configure', 'podman', '--yes')
  expect(configured, configured.stderr).toMatchObject({ exit: 0 })
  for (const reference of references) await pull(reference)
  const asked = await scene.upstream.requests()
  expect(asked.filter(({ path }) => path.endsWith('/manifests/one')).length).toBeGreaterThanOrEqual(references.length)
  const check = await apart.mirror('configure', 'podman', '--check')
  expect(check, `${check.stdout}${check.stderr}`).toMatchObject({
    exit: 0,
    stdout: expect.stringMatching(/^ok/) as string,
  })
  const checked = await apart.mirror('configure', '--check', '--json')
  expect(JSON.parse(checked.stdout)).toMatchObject([{ client: 'podman', seen: true }])
  expect(await apart.mirror('configure', 'podman', '--yes')).toMatchObject({
    exit: 0,
    stdout: expect.stringContaining('already configured') as string,
  })

  expect(await apart.mirror('configure', 'podman', '--undo', '--yes')).toMatchObject({ exit: 0 })
  expect(await readdir(apart.outside(dropIns))).toEqual(before)
  const unchecked = await apart.mirror('configure', 'podman', '--check')
  expect(unchecked, unchecked.stderr).toMatchObject({ exit: 5, stdout: expect.stringMatching(/^FAIL/) as string })
}

/** Returns the root of the newer programs; skips the test, with the reason, if they are not available. */
async function newer({ skip }: TestContext): Promise<string> {
  try {
    return await newerPodman()
  } catch (error) {
    return skip(`there is no newer podman: ${(error as Error).message}`)
  }
}

describe.skipIf(missing !== undefined).each(['podman', 'buildah', 'skopeo'] as const)('%s', (program) => {
  test("this Debian's own version pulls through the mirror after configure, and no longer after the undo", async () => {
    await expectConfigured(program, '')
  })

  test('the version of a newer Debian pulls through the mirror after configure, and no longer after the undo', async (context) => {
    await expectConfigured(program, await newer(context))
  })

  test('the version of a newer Debian pulls through a mirror with TLS and its own CA', async (context) => {
    await expectConfigured(program, await newer(context), ['127.0.0.1'])
  })
})

describe.skipIf(missing !== undefined)('the configuration of podman', () => {
  test("makes podman ask the mirror first and the user's own mirror next", async () => {
    const { apart, pull } = await machineWith('podman', '')
    // Pulls an image that Docker Hub does not have, but the user's own mirror has.
    const corp = `[[registry]]\nlocation = "docker.io"\n[[registry.mirror]]\nlocation = "127.0.0.1:5055/quay.io"\ninsecure = true\n`
    await apart.run('sh', '-c', `printf %s '${corp}' > ${dropIns}/99-corp.conf`)
    expect(await apart.mirror('configure', 'podman', '--yes')).toMatchObject({ exit: 0 })
    expect(await apart.mirror('configure', 'podman', '--check')).toMatchObject({ exit: 0 })
    await pull('docker.io/org/app:one')
    expect(await apart.mirror('configure', 'podman', '--undo', '--yes')).toMatchObject({ exit: 0 })
    expect(await readFile(apart.outside(`${dropIns}/99-corp.conf`), 'utf8')).toBe(corp)
  })

  test('names a running podman service to restart that still uses the old configuration', async () => {
    const { apart, scene } = await machineWith('podman', '')
    const socket = join(scene.folder, 'podman.sock')
    const asked = () => apart.run('podman', '--url', `unix://${socket}`, 'info', '--format', 'json')
    const service = await startDaemon({
      command: apart.enter(['podman', 'system', 'service', '--time', '0', `unix://${socket}`]),
      env: { PATH: systemPath, HOME: apart.home },
      logFile: join(scene.folder, 'service.log'),
      ready: asked,
    })
    onTestFinished(service.stop)
    expect(await apart.mirror('configure', 'podman', '--yes')).toMatchObject({ exit: 0 })
    expect(await asked()).not.toContain('127.0.0.1:5055')
    const again = await apart.mirror('configure', 'podman', '--yes', '--json')
    expect(JSON.parse(again.stdout)).toMatchObject({
      changes: [],
      inUse: false,
      todo: [expect.stringContaining(`pid ${service.pid} `)],
    })
    const doctor = await apart.mirror('doctor', 'podman', '--only', 'clients.running', '--timeout', '60s', '--json')
    expect(JSON.parse(doctor.stdout)).toMatchObject({
      results: [
        {
          state: 'fail',
          saw: expect.stringContaining(`The podman service (pid ${service.pid}) has cached its old configuration.`),
          fix: { command: 'systemctl restart podman' },
        },
      ],
    })
  })

  test('is listed by podman info', async () => {
    const { apart } = await machineWith('podman', '')
    await apart.mirror('configure', 'podman', '--yes')
    const info = JSON.parse(await apart.run('podman', 'info', '--format', 'json')) as {
      registries: Record<string, { Mirrors: { Location: string; Insecure: boolean }[] }>
    }
    expect(info.registries['quay.io']!.Mirrors).toMatchObject([{ Location: '127.0.0.1:5055/quay.io', Insecure: true }])
  })

  test('can be that of a single user, and the undo removes its folder', async () => {
    const { apart, pull } = await machineWith('podman', '')
    expect(await apart.mirror('configure', 'podman', '--scope', 'user', '--yes')).toMatchObject({ exit: 0 })
    await pull(references[1]!)
    expect(await apart.mirror('configure', 'podman', '--scope', 'user', '--check')).toMatchObject({ exit: 0 })
    expect(await apart.mirror('configure', 'podman', '--undo', '--yes')).toMatchObject({ exit: 0 })
    expect(await readdir(apart.home)).not.toContain('.config')
  })
})
