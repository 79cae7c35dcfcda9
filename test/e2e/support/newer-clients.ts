import { lstat, mkdir, mkdtemp, readdir, rename, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { isRootControlled } from '../../../src/lib/ownership.ts'
import { debianMirror } from './debian-mirror.ts'
import { run } from './run.ts'

const packages = [
  'docker.io',
  'docker-cli',
  'containerd',
  'oras',
  'crane',
  'cosign',
  'docker-buildx',
  'docker-compose',
  'kind',
] as const
const programs: Readonly<Record<(typeof packages)[number], readonly [string, string]>> = {
  'docker.io': ['usr/sbin/dockerd', '--version'],
  'docker-cli': ['usr/bin/docker', '--version'],
  containerd: ['usr/bin/containerd', '--version'],
  oras: ['usr/bin/oras', 'version'],
  crane: ['usr/bin/crane', '--help'],
  cosign: ['usr/bin/cosign', 'version'],
  'docker-buildx': ['usr/libexec/docker/cli-plugins/docker-buildx', 'version'],
  'docker-compose': ['usr/libexec/docker/cli-plugins/docker-compose', 'version'],
  kind: ['usr/bin/kind', 'version'],
}
/** suitesOf takes cosign from trixie, because cosign 3 needs remote services to sign. */
const suitesOf = { sid: { cosign: 'trixie' }, trixie: { crane: undefined } } as const

/**
 * Unpacks dockerd, docker, containerd, oras, crane, cosign, buildx, compose and kind of Debian's newer suites beside the system,
 * and returns their root folder, which is kept for the next run. Takes the programs of trixie, which has no crane, when those
 * of sid do not run with Debian 12's libc.
 */
export async function newerClients(): Promise<string> {
  const kept = join(tmpdir(), `mirror-e2e-newer-clients-${packages.join('-')}`)
  const found = await lstat(kept).catch(() => undefined)
  // Checks that only root can change the programs, because every user can write to the temporary folder.
  if (found?.isDirectory() && isRootControlled(kept)) return kept
  if (found) throw new Error(`${kept} is in the way: it should be a folder of root's`)
  const source = await debianMirror()
  const work = await mkdtemp(join(tmpdir(), 'mirror-e2e-newer-'))
  try {
    const unpacked = await unpackSuite('sid', source, work).catch(() => unpackSuite('trixie', source, work))
    await rename(unpacked, kept)
    return kept
  } finally {
    await rm(work, { recursive: true, force: true })
  }
}

/** Fetches the packages with a separate apt state, unpacks them below `work`, and checks that they run. */
async function unpackSuite(suite: 'sid' | 'trixie', source: string, work: string): Promise<string> {
  const suites: Partial<Record<(typeof packages)[number], string | undefined>> = suitesOf[suite]
  const wanted = packages.filter((name) => !(name in suites) || suites[name] !== undefined)
  const folder = join(work, suite)
  const root = join(folder, 'root')
  for (const part of ['lists/partial', 'cache/archives/partial', 'debs', 'root']) {
    await mkdir(join(folder, part), { recursive: true })
  }
  const sourceList = join(folder, 'sources.list')
  const keyring = '/usr/share/keyrings/debian-archive-keyring.gpg'
  const lines = ['sid', 'trixie'].map((name) => `deb [signed-by=${keyring}] ${source} ${name} main\n`)
  await writeFile(sourceList, lines.join(''))
  const settings = {
    'Dir::Etc::SourceList': sourceList,
    'Dir::Etc::SourceParts': '/dev/null',
    'Dir::Etc::Preferences': '/dev/null',
    'Dir::Etc::PreferencesParts': '/dev/null',
    'Dir::State::Lists': join(folder, 'lists'),
    'Dir::Cache': join(folder, 'cache'),
    // Accepts an outdated Debian mirror, because the tests do not need the latest packages.
    'Acquire::Check-Valid-Until': 'false',
    'Acquire::Languages': 'none',
    'Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled': 'false',
    'APT::Sandbox::User': 'root',
  }
  const apt = ['-qq', ...Object.entries(settings).flatMap(([name, value]) => ['-o', `${name}=${value}`])]
  const debs = join(folder, 'debs')
  await run('apt-get', [...apt, 'update'], { timeoutMs: 120_000 })
  const files = wanted.map((name) => `${name}/${suites[name] ?? suite}`)
  await run('apt-get', [...apt, 'download', ...files], { cwd: debs, timeoutMs: 180_000 })
  for (const deb of await readdir(debs)) await run('dpkg', ['-x', join(debs, deb), root])
  for (const name of wanted) await run(join(root, programs[name][0]), [programs[name][1]])
  return root
}
