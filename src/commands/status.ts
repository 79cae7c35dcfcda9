import { boolean } from '@oclif/core/flags'
import { mirrorStatus } from '../app/mirror-status.ts'
import { BaseCommand } from '../cli/base-command.ts'
import { jsonFlag } from '../cli/flags.ts'
import { renderStatus } from '../cli/render-status.ts'
import { exitCode } from '../lib/errors.ts'

export default class Status extends BaseCommand {
  static override summary = 'Where the mirror answers, what it holds, and what it saves'
  static override description = 'Exit code 3 when no mirror runs.'
  static override examples = [
    '<%= config.bin %> <%= command.id %>',
    '<%= config.bin %> <%= command.id %> --watch',
    '<%= config.bin %> <%= command.id %> --json | jq .cache.hitRatio',
  ]
  static override flags = {
    watch: boolean({ char: 'w', description: 'again every second, until Ctrl-C', env: 'MIRROR_WATCH' }),
    json: jsonFlag,
  }

  override async run(): Promise<void> {
    const { flags } = await this.parse(Status)
    if (flags.watch) return this.watch(flags.json)
    const text = await this.look(flags.json)
    if (text !== undefined) return this.print(text)
    if (flags.json) this.printJson({ running: false })
    else this.say('No mirror runs. To start one: mirror up')
    process.exitCode = exitCode.notRunning
  }

  private async look(asJson: boolean): Promise<string | undefined> {
    const report = await mirrorStatus(this.surroundings())
    if (report === undefined) return undefined
    return asJson ? JSON.stringify(report, null, 2) : renderStatus(report, this.paintFor(process.stdout), Date.now())
  }

  /** On a terminal in its place; elsewhere one after the other, JSON as one object a line. */
  private async watch(asJson: boolean): Promise<void> {
    this.endWhenUnread()
    const { systemClock } = await import('../lib/clock.ts')
    const { MirrorError } = await import('../lib/errors.ts')
    while (!this.interrupted.aborted) {
      const text = await this.look(asJson).catch((error: unknown) => {
        // One that is just ending, or busy, may answer the next time.
        if (error instanceof MirrorError && !asJson) return error.message
        throw error
      })
      const shown = text ?? (asJson ? '{"running": false}' : 'No mirror runs.')
      if (asJson) this.print(JSON.stringify(JSON.parse(shown)))
      else this.print(process.stdout.isTTY ? `\x1b[H\x1b[2J${shown}` : `${shown}\n`)
      await systemClock.sleep(1000, this.interrupted).catch(() => {})
    }
  }
}
