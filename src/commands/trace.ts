import { boolean, string } from '@oclif/core/flags'
import { string as stringArgument } from '@oclif/core/args'
import type { TraceReport } from '../admin/activity.ts'
import { BaseCommand } from '../cli/base-command.ts'
import { jsonFlag } from '../cli/flags.ts'
import { getColumns } from '../cli/terminal.ts'
import { exitCode } from '../lib/errors.ts'

const pollMs = 500

export default class Trace extends BaseCommand {
  static override summary = 'Explain an image: what a pull would do now, and why'
  static override description =
    'Shows first what a pull would do now and why; then what each client asks, the upstream, the tag, the content, and the last ' +
    'requests with the reasons of their misses. It sends no request to a registry and changes nothing. With the id of a request ' +
    '(X-Request-Id, or id in the log) it shows that request and its image. Exit code 3 when no mirror is running.'
  static override examples = [
    '<%= config.bin %> <%= command.id %> alpine',
    '<%= config.bin %> <%= command.id %> ghcr.io/org/app:1.2 --client docker',
    '<%= config.bin %> <%= command.id %> localhost:5001/app',
    '<%= config.bin %> <%= command.id %> nginx:1.27 --follow',
    '<%= config.bin %> <%= command.id %> redis:7 --json | jq .next',
  ]
  static override args = {
    image: stringArgument({ description: 'an image as in `docker pull`, or the id of a request', required: true }),
  }
  static override flags = {
    client: string({ description: 'client whose requests to show (default: all)', helpValue: 'NAME' }),
    platform: string({
      description: 'platform to pull for (default: linux on this processor)',
      helpValue: 'OS/ARCH',
    }),
    follow: boolean({ char: 'f', description: 'show the arriving parts until all are held' }),
    json: jsonFlag,
  }

  override async run(): Promise<void> {
    const { args, flags } = await this.parse(Trace)
    const options = { name: args.image, platform: flags.platform, client: flags.client }
    if (flags.follow) return this.follow(options, flags.json)
    const { readTrace } = await import('../cli/trace-flow.ts')
    const trace = await readTrace(this.getSurroundings(), options)
    if (trace === undefined) return this.reportDown(flags.json)
    if (flags.json) return this.printJson(trace)
    const { renderRequest, renderTrace } = await import('../cli/render/trace.ts')
    if (!('image' in trace)) return this.print(renderRequest(trace.request, this.getRenderOptions()))
    this.print(renderTrace(trace, this.getRenderOptions()))
  }

  private getRenderOptions() {
    return { colors: this.getColorsFor(process.stdout), columns: getColumns(process.stdout), now: Date.now() }
  }

  /** `asJson`: prints an object; `line` prints it on one line, like each of a followed pull. */
  private reportDown(asJson: boolean | 'line'): void {
    if (asJson === 'line') this.print(JSON.stringify({ running: false }))
    else if (asJson) this.printJson({ running: false })
    else this.info('mirror is not running. Start it with: mirror up')
    process.exitCode = exitCode.notRunning
  }

  /** Redraws the state on a terminal; elsewhere prints one line per change, and JSON as one object a line. */
  private async follow(options: { name: string; platform: string | undefined }, asJson: boolean): Promise<void> {
    this.endWhenUnread()
    const { openTraceReader } = await import('../cli/trace-flow.ts')
    const { isFinished, listChanges, renderFollow } = await import('../cli/render/trace.ts')
    const { toPrintable } = await import('../cli/render/table.ts')
    const read = await openTraceReader(this.getSurroundings(), options)
    if (read === undefined) return this.reportDown(asJson && 'line')
    let before: TraceReport | undefined
    const printChanges = (report: TraceReport) => {
      const changes = listChanges(before, report)
      if (!asJson) for (const line of changes) this.print(line)
      else if (changes.length > 0 || before === undefined) this.print(JSON.stringify(report))
      before = report
    }
    // A name that cannot be traced ends the command before the screen opens.
    const first = await read()
    if (!asJson && !process.stdout.isTTY && listChanges(undefined, first).length === 0)
      this.info(`Waiting for requests for ${toPrintable(first.image, 400)}. Ctrl-C ends this.`)
    if (asJson || !process.stdout.isTTY) return void (await this.poll(first, read, printChanges, isFinished))
    const { openScreen } = await import('../cli/terminal.ts')
    const screen = openScreen(process.stdout)
    const show = (report: TraceReport) => screen.show(renderFollow(report, this.getRenderOptions()))
    const last = await this.poll(first, read, show, isFinished).finally(() => screen.close())
    // The screen is gone with what it showed.
    if (isFinished(last)) this.print(renderFollow(last, this.getRenderOptions()))
  }

  /** Shows reports until the last one, or an interruption. Returns the last one. */
  private async poll(
    first: TraceReport,
    read: () => Promise<TraceReport>,
    show: (report: TraceReport) => void,
    isLast: (report: TraceReport) => boolean,
  ): Promise<TraceReport> {
    const { systemClock } = await import('../lib/time.ts')
    for (let report = first; ; report = await read()) {
      if (!this.interrupted.aborted) show(report)
      if (isLast(report)) return report
      await systemClock.sleep(pollMs, this.interrupted).catch(() => {})
      if (this.interrupted.aborted) return report
    }
  }
}
