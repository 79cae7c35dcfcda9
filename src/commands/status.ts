import { boolean } from '@oclif/core/flags'
import { readMirrorStatus } from '../admin/access.ts'
import type { DeadMirror } from '../admin/find-mirror.ts'
import { BaseCommand } from '../cli/base-command.ts'
import { jsonFlag } from '../cli/flags.ts'
import { renderStatus } from '../cli/render/status.ts'
import { renderDown } from '../cli/render/up.ts'
import { getColumns, fitText } from '../cli/terminal.ts'
import { mirrorPaths } from '../config/paths.ts'
import { exitCode } from '../lib/errors.ts'

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
    const text = await this.readStatus(flags.json)
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

  private async readStatus(asJson: boolean): Promise<string | undefined> {
    const report = await readMirrorStatus(this.getSurroundings())
    if (report === undefined) return undefined
    const { version } = this.config
    const shown = report.version === version ? report : { ...report, cliVersion: version }
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
    const { MirrorError } = await import('../lib/errors.ts')
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
