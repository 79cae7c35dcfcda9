import { boolean } from '@oclif/core/flags'
import { BaseCommand } from '../cli/base-command.ts'
import { dryRunFlag, jsonFlag, yesFlag } from '../cli/flags.ts'
import type { StoredRecord } from '../clients/records.ts'
import { mirrorPaths, type MirrorPaths } from '../config/paths.ts'
import type { StoppedMirror } from '../daemon/stop.ts'
import { MirrorError } from '../lib/errors.ts'
import type { CommandEnvironment } from '../lib/process.ts'

export default class Down extends BaseCommand {
  static override summary = 'Stop the mirror and keep its data'
  static override description =
    'Pulls in flight get up to 30 s to finish. A container is removed, and its volume stays unless --volumes is given. Exit ' +
    'code 0 when no mirror is running, too.'
  static override examples = [
    '<%= config.bin %> <%= command.id %>',
    '<%= config.bin %> <%= command.id %> --no-autostart',
    '<%= config.bin %> <%= command.id %> --volumes --yes',
    '<%= config.bin %> <%= command.id %> --dry-run',
  ]
  static override flags = {
    'no-autostart': boolean({
      description: 'undo `mirror up --autostart`',
    }),
    volumes: boolean({
      description: 'also delete the volume: cached content and pushed images',
    }),
    yes: yesFlag,
    json: jsonFlag,
    'dry-run': dryRunFlag,
  }

  override async run(): Promise<void> {
    const { flags } = await this.parse(Down)
    const surroundings = this.getOwnSurroundings()
    const paths = mirrorPaths(surroundings)
    const { systemClock } = await import('../lib/time.ts')
    if (flags['dry-run']) return this.printPreview(paths, flags)
    if (flags.volumes && !(await this.confirmVolumeRemoval(flags))) return this.info('Nothing was done.')
    const { stopAnyMirror } = await import('../daemon/stop.ts')
    const { findRunningMirror } = await import('../admin/find-mirror.ts')
    const owner = (await findRunningMirror(surroundings))?.user
    // Stop only root's own mirror under sudo: the state files of a user must not make root end a process.
    const stopped = owner ? undefined : await stopAnyMirror({ paths, clock: systemClock, surroundings })
    const volumeRemoved = flags.volumes ? await this.removeVolume(surroundings) : undefined
    const autostartRemoved = flags['no-autostart'] ? await this.removeAutostart() : undefined

    const stillConfigured = await this.listConfiguredClients(surroundings)
    if (flags.json) {
      const clients = stillConfigured.map(({ client, place, fallback }) => ({ client, place, fallback }))
      return this.printJson({ stopped: stopped !== undefined, ...stopped, autostartRemoved, volumeRemoved, clients })
    }
    this.report(describeStop(stopped, volumeRemoved === true))
    if (owner) this.info(`The mirror of ${owner.name} is running. Stop it without sudo: mirror down`)
    if (stopped !== undefined && stillConfigured.length > 0) {
      const { renderStillConfigured } = await import('../cli/render/configure.ts')
      this.info(renderStillConfigured(stillConfigured, await this.listUndoCommands(surroundings, stillConfigured)))
    }
    if (autostartRemoved) this.report('It no longer starts after a reboot.')
  }

  private async listConfiguredClients(surroundings: CommandEnvironment): Promise<StoredRecord[]> {
    const { findRecordFolders, openClientRecords } = await import('../clients/records.ts')
    const records = await openClientRecords(await findRecordFolders(surroundings)).list()
    return records.filter(({ root }) => root === undefined)
  }

  /** Lists the commands that undo the clients' configuration. Only root can undo its own. */
  private async listUndoCommands(
    surroundings: CommandEnvironment,
    stillConfigured: readonly StoredRecord[],
  ): Promise<string[]> {
    const { renderRootCommand } = await import('../admin/sudo.ts')
    const rootOnly = stillConfigured.filter(({ lockedByRoot }) => lockedByRoot)
    return [
      ...(rootOnly.length < stillConfigured.length ? ['mirror configure --undo'] : []),
      ...(rootOnly.length > 0 ? [await renderRootCommand(surroundings, ['configure', '--undo'])] : []),
    ]
  }

  private async printPreview(
    paths: MirrorPaths,
    { json, volumes }: { json: boolean; volumes: boolean },
  ): Promise<void> {
    const { findRunning } = await import('../admin/state.ts')
    const running = await findRunning(paths.stateFile)
    const { pid, container } = running ?? {}
    if (json)
      return this.printJson({
        running: running !== undefined,
        pid: container ? 0 : pid,
        container: container?.name,
        volumes,
        dryRun: true,
      })
    const where = container ? `container ${container.name}` : `pid ${pid}`
    this.report(running === undefined ? 'Nothing to do: no mirror is running.' : `Would stop the mirror (${where}).`)
    if (volumes) this.report('Would delete the volume with cached content and pushed images.')
  }

  private async confirmVolumeRemoval(flags: { yes: boolean }): Promise<boolean> {
    const { confirm, createPrompt } = await import('../cli/terminal.ts')
    const prompt = createPrompt(process.stdin, process.stdout)
    const question = "Delete the container's volume, with all cached content and pushed images?"
    return confirm({ prompt }, flags, question, false)
  }

  private async removeVolume(surroundings: CommandEnvironment): Promise<boolean> {
    const { openEngine } = await import('../docker/dockerode-engine.ts')
    const { removeVolume } = await import('../daemon/container/stop.ts')
    const { removeVolumeMarker, readVolumeMarkerEngine } = await import('../admin/state.ts')
    const { stateDir } = mirrorPaths(surroundings)
    const engine = await openEngine(surroundings, await readVolumeMarkerEngine(stateDir)).catch(dropUpHints)
    const removed = await removeVolume(engine, stateDir)
    await removeVolumeMarker(stateDir)
    return removed
  }

  private async removeAutostart(): Promise<boolean> {
    const { getAutostart } = await import('../daemon/autostart.ts')
    return getAutostart(this.getSurroundings()).remove()
  }
}

/** Throws an engine's error without its advice to start a mirror. */
function dropUpHints(error: unknown): never {
  if (!(error instanceof MirrorError)) throw error
  const hints = error.hints.filter((hint) => !hint.startsWith('mirror up'))
  throw new MirrorError(error.message, { exit: error.exit, hints, cause: error })
}

function describeStop(stopped: StoppedMirror | undefined, volumeRemoved: boolean): string {
  if (stopped === undefined)
    return volumeRemoved ? 'No mirror was running. Deleted its volume.' : 'No mirror was running.'
  const { pid, container, volume, dataDir, killed } = stopped
  if (container !== undefined) {
    const location = volume === undefined ? 'where it is' : `in the volume ${volume}`
    return `Removed the container ${container}. ${volumeRemoved ? 'Deleted its volume.' : `Its data stays ${location}.`}`
  }
  const end = killed ? `The mirror (pid ${pid}) did not stop in time and was killed.` : `Stopped mirror (pid ${pid}).`
  return dataDir === undefined ? end : `${end} Its data stays in ${dataDir}`
}
