import { boolean, integer } from '@oclif/core/flags'
import { BaseCommand } from '../cli/base-command.ts'
import { jsonFlag } from '../cli/flags.ts'
import { renderLogLine } from '../cli/render-log-line.ts'
import { mirrorPaths } from '../config/paths.ts'
import { MirrorError, errnoOf, exitCode } from '../lib/errors.ts'

export default class Logs extends BaseCommand {
  static override summary = 'The log of the mirror that `mirror up` started'
  static override description = 'Lines for people on a terminal, JSON lines elsewhere.'
  static override examples = [
    '<%= config.bin %> <%= command.id %> -f',
    '<%= config.bin %> <%= command.id %> --lines 1000 --json | jq .msg',
  ]
  static override flags = {
    follow: boolean({ char: 'f', description: 'go on with what comes, until Ctrl-C', env: 'MIRROR_FOLLOW' }),
    lines: integer({
      char: 'n',
      description: 'how many of the last lines',
      default: 200,
      min: 0,
      helpValue: 'N',
      env: 'MIRROR_LINES',
    }),
    json: jsonFlag,
  }

  override async run(): Promise<void> {
    const { flags } = await this.parse(Logs)
    this.endWhenUnread()
    const { readLogs } = await import('../app/read-logs.ts')
    const { findRunning } = await import('../runtime/state-file.ts')
    const { systemClock } = await import('../lib/clock.ts')
    const surroundings = this.surroundings()
    const { logFile, stateFile } = mirrorPaths(surroundings)
    const running = await findRunning(stateFile)
    const paint = this.paintFor(process.stdout)
    const pretty = process.stdout.isTTY && !flags.json
    const write = (line: string) => this.print(pretty ? renderLogLine(line, paint) : line)
    if (running?.container) {
      const { containerLogs } = await import('../app/container/container-logs.ts')
      const request = { lines: flags.lines, follow: flags.follow, signal: this.interrupted }
      for await (const line of containerLogs(surroundings, running.container, request)) write(line)
      return
    }
    if (running !== undefined && running.logFile === undefined)
      this.say(`The mirror that runs (pid ${running.pid}) writes its log to its own stderr; this is an earlier one's.`)

    try {
      await readLogs({
        logFile,
        lines: flags.lines,
        follow: flags.follow,
        signal: this.interrupted,
        clock: systemClock,
        write,
      })
    } catch (error) {
      if (errnoOf(error) !== 'ENOENT') throw error
      throw new MirrorError('There is no log: no mirror has been started in the background yet.', {
        exit: exitCode.notRunning,
        hints: ['mirror up'],
        cause: error,
      })
    }
  }
}
