import { access, constants, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { caFileName } from '../../clients/ca-file.ts'
import { k3sFolder, k3sTemplates, planRegistries, sayTemplates, stripRegistries } from '../../clients/k3s.ts'
import { localFiles } from '../../clients/files/local.ts'
import { ifVisible } from '../../lib/fs.ts'
import { MirrorError, exitCode } from '../../lib/errors.ts'
import type { ClientAdapter, ClientPlace, ClientReload, Machine, Observation } from '../../clients/types.ts'
import { pullByCrictl, pullTimeoutMs } from './pull-by-crictl.ts'
import { versionOf } from './version-of.ts'

/** k3s on this machine. https://docs.k3s.io/installation/private-registry */
export const k3sAdapter: ClientAdapter = {
  client: 'k3s',
  summary: 'k3s: registries.yaml',

  async find(machine) {
    return versionOf(machine, 'k3s', '--version')
  },

  async places(machine) {
    return [place(machine, await readableTemplates(machine))]
  },

  recall: (machine) => place(machine, []),
}

const restartByHand = 'k3s reads it when it starts: systemctl restart k3s (k3s-agent on an agent)'

const templatesFolder = ({ root }: Machine) => join(root, 'var', 'lib', 'rancher', 'k3s', 'agent', 'etc', 'containerd')

/** k3s keeps them from all but root, and a plan is possible without them. */
async function readableTemplates(machine: Machine): Promise<string[]> {
  const paths = k3sTemplates.map(([name]) => join(templatesFolder(machine), name))
  const readable = await Promise.all(paths.map((path) => ifVisible(access(path, constants.R_OK).then(() => path))))
  return readable.filter((path) => path !== undefined)
}

function place(machine: Machine, templates: readonly string[]): ClientPlace {
  const { root, runCommand } = machine
  const path = join(root, k3sFolder, 'registries.yaml')
  const ca = { path: join(root, k3sFolder, caFileName), name: `${k3sFolder}/${caFileName}` }
  return {
    id: 'system',
    title: `system (${path})`,
    details: { scope: 'system' },
    home: { in: 'host' },
    files: localFiles,
    wants: { files: [path, ca.path, ...templates], trees: [] },
    plan(mirror, files) {
      const { changes, notes } = planRegistries(mirror, path, ca, files)
      const todo = [
        ...(changes.length === 0 ? [] : [restartByHand]),
        ...(mirror.fallback
          ? []
          : ['start k3s with --disable-default-registry-endpoint: it asks the origin otherwise']),
      ]
      return { changes, notes: [...notes, ...sayTemplates(templatesFolder(machine), files, join)], todo }
    },
    strip: (mirror, files) => stripRegistries(mirror, path, ca, files),
    ...(!machine.detached && {
      reload: restart(machine),
      afterUndo: () => [restartByHand],
      observe: ({ cache }) => observe(cache, root),
    }),
    pull(image) {
      return pullByCrictl(
        (args) => runCommand('k3s', ['crictl', ...args], { timeoutMs: pullTimeoutMs }),
        image,
        'There is no k3s here.',
      )
    },
    reasons: [
      { why: 'k3s was not restarted since', fix: 'systemctl restart k3s' },
      { why: 'k3s is not configured', fix: 'mirror configure k3s', isUnconfigured: true },
      {
        why: 'the file is not what k3s expects, which its log says',
        fix: 'journalctl --unit k3s --no-pager --lines 50',
      },
    ],
  }
}

/** k3s turns registries.yaml into hosts.toml files when it starts: they say what it runs with. */
async function observe(cache: string, root: string): Promise<Observation> {
  const made = join(root, 'var', 'lib', 'rancher', 'k3s', 'agent', 'etc', 'containerd', 'certs.d')
  const texts: string[] = []
  for (const name of ['_default', 'docker.io']) {
    const state = await ifVisible(localFiles.read(join(made, name, 'hosts.toml')))
    if (state) texts.push(Buffer.from(state.bytes).toString())
  }
  const isThere = (await ifVisible(stat(made))) !== undefined
  const inUse = isThere ? texts.some((text) => text.includes(new URL(cache).host)) : undefined
  return {
    inUse,
    saw: isThere
      ? [`k3s runs with ${made}, which ${inUse ? 'names' : 'does not name'} ${cache}.`]
      : [`${made}, which tells what k3s runs with, cannot be seen.`],
    reasons:
      inUse === false
        ? [{ why: 'k3s was not restarted since it was configured', fix: 'sudo systemctl restart k3s' }]
        : [
            {
              why: `k3s did not reach ${cache}, or could not use its hosts.toml`,
              fix: 'journalctl --unit k3s --no-pager --lines 50',
            },
          ],
    todo: inUse === false ? [restartByHand] : [],
  }
}

function restart({ runCommand }: Machine): ClientReload {
  const systemctl = (...args: string[]) => runCommand('systemctl', args, { timeoutMs: 120_000 })
  return {
    question: 'Restart k3s now?',
    done: 'Restarted k3s.',
    async run() {
      // A node has one of the two, and systemctl fails for a unit that it does not know.
      for (const unit of ['k3s.service', 'k3s-agent.service']) {
        const active = await systemctl('is-active', '--quiet', unit)
        if (active === undefined) throw notRestarted('there is no systemctl')
        if (active.exitCode !== 0) continue
        const restarted = await systemctl('restart', unit)
        if (restarted?.exitCode === 0) return
        throw notRestarted(restarted?.stderr.trim() || 'it took too long')
      }
      throw notRestarted('it does not run as a service of systemd')
    },
  }
}

function notRestarted(why: string): MirrorError {
  return new MirrorError(`k3s was not restarted: ${why}.`, {
    exit: exitCode.missing,
    hints: ['systemctl restart k3s   (k3s-agent on an agent)'],
  })
}
