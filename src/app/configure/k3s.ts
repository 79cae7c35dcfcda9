import { access, constants } from 'node:fs/promises'
import { join } from 'node:path'
import { caFileName } from '../../clients/ca-file.ts'
import { k3sFolder, k3sTemplates, planRegistries, sayTemplates, stripRegistries } from '../../clients/k3s.ts'
import { localFiles } from '../../clients/local-files.ts'
import { MirrorError, exitCode } from '../../lib/errors.ts'
import { ifVisible } from '../../lib/if-visible.ts'
import type { ClientAdapter, ClientPlace, ClientReload, Machine } from './client-adapter.ts'
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
    title: `the whole system (${path})`,
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
    ...(!machine.detached && { reload: restart(machine), afterUndo: () => [restartByHand] }),
    pull(image) {
      return pullByCrictl(
        (args) => runCommand('k3s', ['crictl', ...args], { timeoutMs: pullTimeoutMs }),
        image,
        'There is no k3s here.',
      )
    },
    reasons: [
      { why: 'k3s was not restarted since', fix: 'systemctl restart k3s' },
      { why: 'it is not configured', fix: 'sudo mirror configure k3s' },
      {
        why: 'the file is not what k3s expects, which its log says',
        fix: 'journalctl --unit k3s --no-pager --lines 50',
      },
    ],
  }
}

function restart({ runCommand }: Machine): ClientReload {
  const systemctl = (...args: string[]) => runCommand('systemctl', args, { timeoutMs: 120_000 })
  return {
    says: 'restarted k3s',
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
