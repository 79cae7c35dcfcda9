import { boolean } from '@oclif/core/flags'
import { BaseCommand } from '../cli/base-command.ts'
import { dryRunFlag, jsonFlag, yesFlag } from '../cli/flags.ts'
import { columnsOf, fitText } from '../cli/terminal.ts'
import type { KnownRecord } from '../clients/records.ts'
import { mirrorPaths, type MirrorPaths } from '../config/paths.ts'
import type { StoppedMirror } from '../daemon/stop.ts'
import type { Surroundings } from '../lib/process.ts'

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
    const surroundings = this.ownSurroundings()
    const paths = mirrorPaths(surroundings)
    const { systemClock } = await import('../lib/time.ts')
    if (flags['dry-run']) return this.foretell(paths, flags)
    if (flags.volumes && !(await this.mayDrop(flags))) return this.info('Nothing was done.')
    const { stopAnyMirror } = await import('../daemon/stop.ts')
    const { findMirrorHere } = await import('../admin/find-mirror.ts')
    const of = (await findMirrorHere(surroundings))?.user
    // Under sudo it is root's mirror that is meant; what a user's files say ends no process of root's.
    const stopped = of ? undefined : await stopAnyMirror({ paths, clock: systemClock, surroundings })
    const volumeRemoved = flags.volumes ? await this.dropVolume(surroundings) : undefined
    const autostartRemoved = flags['no-autostart'] ? await this.removeAutostart() : undefined

    const pointing = await this.pointing(surroundings)
    if (flags.json) {
      const clients = pointing.map(({ client, place, fallback }) => ({ client, place, fallback }))
      return this.printJson({ stopped: stopped !== undefined, ...stopped, autostartRemoved, volumeRemoved, clients })
    }
    this.print(fitText(endOf(stopped, volumeRemoved === true), columnsOf(process.stdout)))
    if (of) this.info(`The mirror of ${of.name} is running. Stop it without sudo: mirror down`)
    if (stopped !== undefined && pointing.length > 0) {
      const { renderPointing } = await import('../cli/render/configure.ts')
      this.info(renderPointing(pointing, await this.undoCommands(surroundings, pointing)))
    }
    if (autostartRemoved) this.print('It does not come back after a reboot any more.')
  }

  private async pointing(surroundings: Surroundings): Promise<KnownRecord[]> {
    const { findRecordFolders } = await import('../clients/records.ts')
    const { openConfiguredClients } = await import('../clients/records.ts')
    const records = await openConfiguredClients(await findRecordFolders(surroundings)).list()
    return records.filter(({ root }) => root === undefined)
  }

  /** What root has configured only root can undo. */
  private async undoCommands(surroundings: Surroundings, pointing: readonly KnownRecord[]): Promise<string[]> {
    const { rootCommand } = await import('../admin/sudo.ts')
    const isRoots = pointing.filter(({ lockedByRoot }) => lockedByRoot)
    return [
      ...(isRoots.length < pointing.length ? ['mirror configure --undo'] : []),
      ...(isRoots.length > 0 ? [await rootCommand(surroundings, ['configure', '--undo'])] : []),
    ]
  }

  private async foretell(paths: MirrorPaths, { json, volumes }: { json: boolean; volumes: boolean }): Promise<void> {
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
    this.print(running === undefined ? 'Nothing: no mirror runs.' : `Would stop the mirror (${where}).`)
    if (volumes) this.print('Would drop the volume with what was cached and pushed.')
  }

  private async mayDrop(flags: { yes: boolean }): Promise<boolean> {
    const { confirm: agree } = await import('../cli/terminal.ts')
    const { createPrompt } = await import('../cli/terminal.ts')
    const prompt = createPrompt(process.stdin, process.stdout)
    return agree({ prompt }, flags, 'Drop everything the container has cached, and the images that were pushed to it?')
  }

  private async dropVolume(surroundings: Surroundings): Promise<boolean> {
    const { openEngine } = await import('../docker/dockerode-engine.ts')
    const { removeVolume } = await import('../daemon/container/stop.ts')
    const { removeVolumeMarker: forgetResting, volumeMarkerEngine: restingEngine } = await import('../admin/state.ts')
    const { stateDir } = mirrorPaths(surroundings)
    const removed = await removeVolume(await openEngine(surroundings, await restingEngine(stateDir)), stateDir)
    await forgetResting(stateDir)
    return removed
  }

  private async removeAutostart(): Promise<boolean> {
    const { autostartOf } = await import('../daemon/autostart.ts')
    return autostartOf(this.surroundings()).remove()
  }
}

function endOf(stopped: StoppedMirror | undefined, dropped: boolean): string {
  if (stopped === undefined) return dropped ? 'No mirror was running. Its data is dropped.' : 'No mirror was running.'
  const { pid, container, volume, dataDir, killed } = stopped
  if (container !== undefined) {
    const place = volume === undefined ? 'where it is' : `in the volume ${volume}`
    return `The container ${container} is gone. ${dropped ? 'The volume is dropped.' : `Its data stays ${place}.`}`
  }
  const end = killed ? `The mirror (pid ${pid}) did not end in time and was killed.` : `Stopped mirror (pid ${pid}).`
  return dataDir === undefined ? end : `${end} Its data stays in ${dataDir}`
}
