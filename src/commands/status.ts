import { stat } from 'node:fs/promises'
import { boolean } from '@oclif/core/flags'
import { readMirrorStatus } from '../admin/access.ts'
import type { DeadMirror } from '../admin/find-mirror.ts'
import { BaseCommand } from '../cli/base-command.ts'
import { jsonFlag } from '../cli/flags.ts'
import { renderStatus } from '../cli/render/status.ts'
import { describeStaleClient, renderDown } from '../cli/render/up.ts'
import { getColumns, fitText } from '../cli/terminal.ts'
import { mirrorPaths } from '../config/paths.ts'
import { exitCode, MirrorError } from '../lib/errors.ts'
import { ignoreMissing } from '../lib/fs.ts'
import type { CommandEnvironment } from '../lib/process.ts'

export default class Status extends BaseCommand {
  static override summary = 'Show the addresses, content, savings and problems'
  static override description =
    'A pull is an image; hits and misses are the manifests and blobs that clients requested. Exit code 3 when no mirror is ' +
    'running.'
  static override examples = [
    '<%= config.bin %> <%= command.id %>',
    '<%= config.bin %> <%= command.id %> --watch',
    '<%= config.bin %> <%= command.id %> --json | jq .cache.hitRatio',
  ]
  static override flags = {
    watch: boolean({ char: 'w', description: 'refresh every second until Ctrl-C' }),
    json: jsonFlag,
  }

  override async run(): Promise<void> {
    const { flags } = await this.parse(Status)
    if (flags.watch) return this.watch(flags.json)
    const text = await this.readStatus(flags.json, () => listPending(this.getSurroundings()))
    if (text !== undefined) {
      this.print(text)
      return this.refreshCredentials()
    }
    const died = await this.findDead()
    if (flags.json) this.printJson({ running: false, ...(died && { died }) })
    else this.info(fitText(renderDown(died, Date.now()), getColumns(process.stderr)))
    process.exitCode = exitCode.notRunning
  }

  private async findDead(): Promise<DeadMirror | undefined> {
    const { findDeadMirror } = await import('../admin/find-mirror.ts')
    const surroundings = this.getSurroundings()
    return findDeadMirror(mirrorPaths(surroundings), surroundings)
  }

  /** `listPending` is left out while the status is redrawn each second. */
  private async readStatus(asJson: boolean, listPending?: () => Promise<string[]>): Promise<string | undefined> {
    const report = await readMirrorStatus(this.getSurroundings())
    if (report === undefined) return undefined
    const { version } = this.config
    const pending = (await listPending?.()) ?? []
    const shown = {
      ...report,
      ...(report.version !== version && { cliVersion: version }),
      ...(pending.length > 0 && { pending }),
    }
    if (asJson) return JSON.stringify(shown, null, 2)
    return renderStatus(shown, this.getColorsFor(process.stdout), Date.now(), getColumns(process.stdout))
  }

  /** Redraws the status on a terminal; elsewhere prints one after the other, JSON as one object a line. */
  private async watch(asJson: boolean): Promise<void> {
    this.endWhenUnread()
    if (asJson || !process.stdout.isTTY) return this.watchBy(asJson, (text) => this.print(asJson ? text : `${text}\n`))
    const { openScreen } = await import('../cli/terminal.ts')
    const screen = openScreen(process.stdout)
    try {
      await this.watchBy(asJson, (text) => screen.show(text))
    } finally {
      screen.close()
    }
  }

  private async watchBy(asJson: boolean, show: (text: string) => void): Promise<void> {
    const { systemClock } = await import('../lib/time.ts')
    while (!this.interrupted.aborted) {
      const text = await this.readStatus(asJson).catch((error: unknown) => {
        // Show the error and continue: a mirror that is ending or busy may answer the next time.
        if (error instanceof MirrorError && !asJson) return error.message
        throw error
      })
      const died = text === undefined ? await this.findDead() : undefined
      const shown = text ?? (asJson ? JSON.stringify({ running: false, died }) : renderDown(died, Date.now()))
      if (this.interrupted.aborted) return
      show(asJson ? JSON.stringify(JSON.parse(shown)) : shown)
      await systemClock.sleep(1000, this.interrupted).catch(() => {})
    }
  }
}

/**
 * Lists the changes of this machine that are not applied, a sentence each with the next step: an edited mirror.yaml, and clients with an
 * old address.
 */
async function listPending(surroundings: CommandEnvironment): Promise<string[]> {
  return [...(await describeEditedConfig(surroundings)), ...(await describeOldAddresses(surroundings))]
}

/** Compares mirror.yaml with the running mirror, if it was edited after the start. A mirror in a container has a copy of its own. */
async function describeEditedConfig(surroundings: CommandEnvironment): Promise<string[]> {
  const { findRunningMirror } = await import('../admin/find-mirror.ts')
  const found = await findRunningMirror(surroundings)
  if (found === undefined || found.user !== undefined || found.running.container) return []
  const { paths, running } = found
  const edited = await ignoreMissing(() => stat(paths.configFile))
  if (edited === undefined || edited.mtimeMs <= Date.parse(running.startedAt)) return []
  const { loadConfig } = await import('../config/load.ts')
  const config = loadConfig({ ...surroundings, paths })
  try {
    await config
  } catch (error) {
    if (!(error instanceof MirrorError)) throw error
    return [`${paths.configFile} was edited and is not valid now. Next: mirror doctor`]
  }
  const { planStart } = await import('../doctor/start-command.ts')
  const { changed, fix } = await planStart({ found: Promise.resolve(found), config, paths, surroundings })
  return changed.length === 0
    ? []
    : [`the edited ${paths.configFile} is not applied (${changed.join(', ')}). Next: ${fix.command}`]
}

async function describeOldAddresses(surroundings: CommandEnvironment): Promise<string[]> {
  const { findStaleClients } = await import('../clients/stale-clients.ts')
  try {
    return (await findStaleClients(surroundings)).map(describeStaleClient)
  } catch (error) {
    // Leave unreadable records to mirror doctor.
    if (error instanceof MirrorError) return []
    throw error
  }
}
