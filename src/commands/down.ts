import { boolean } from '@oclif/core/flags'
import { BaseCommand } from '../cli/base-command.ts'
import { dryRunFlag, jsonFlag } from '../cli/flags.ts'
import { mirrorPaths } from '../config/paths.ts'

export default class Down extends BaseCommand {
  static override summary = 'Stop the mirror; what is cached stays'
  static override description = 'Pulls in flight get up to 30 s to finish. That no mirror runs is no failure.'
  static override examples = [
    '<%= config.bin %> <%= command.id %>',
    '<%= config.bin %> <%= command.id %> --no-autostart',
    '<%= config.bin %> <%= command.id %> --dry-run',
  ]
  static override flags = {
    'no-autostart': boolean({
      description: 'and do not come back after a reboot',
      env: 'MIRROR_NO_AUTOSTART',
    }),
    json: jsonFlag,
    'dry-run': dryRunFlag,
  }

  override async run(): Promise<void> {
    const { flags } = await this.parse(Down)
    const surroundings = this.surroundings()
    const paths = mirrorPaths(surroundings)
    if (flags['dry-run']) {
      const { findRunning } = await import('../runtime/state-file.ts')
      const pid = (await findRunning(paths.stateFile))?.pid
      if (flags.json) return this.printJson({ running: pid !== undefined, pid, dryRun: true })
      return this.print(pid === undefined ? 'Nothing: no mirror runs.' : `Would stop the mirror (pid ${pid}).`)
    }
    const { stopMirror } = await import('../app/stop-mirror.ts')
    const { systemClock } = await import('../lib/clock.ts')
    const stopped = await stopMirror({ paths, clock: systemClock, platform: surroundings.platform })
    const autostartRemoved = flags['no-autostart'] ? await this.removeAutostart() : undefined

    const { openConfiguredClients } = await import('../clients/configured.ts')
    const pointing = (await openConfiguredClients(paths.stateDir).list()).filter(({ root }) => root === undefined)
    if (flags.json) {
      const clients = pointing.map(({ client, place, fallback }) => ({ client, place, fallback }))
      return this.printJson({ stopped: stopped !== undefined, ...stopped, autostartRemoved, clients })
    }
    if (stopped === undefined) this.print('No mirror was running.')
    else if (stopped.killed) this.print(`The mirror (pid ${stopped.pid}) did not end in time and was killed.`)
    else this.print(`The mirror (pid ${stopped.pid}) has ended. What it cached stays in ${paths.dataDir}`)
    if (stopped !== undefined && pointing.length > 0) {
      const { renderPointing } = await import('../cli/render-configure.ts')
      this.say(renderPointing(pointing))
    }
    if (autostartRemoved) this.print('It does not come back after a reboot any more.')
  }

  private async removeAutostart(): Promise<boolean> {
    const { autostartOf } = await import('../app/autostart-mirror.ts')
    return autostartOf(this.surroundings()).remove()
  }
}
