import { boolean, integer } from '@oclif/core/flags'
import type { ContainerRecord } from '../admin/state.ts'
import { refuseForeignPaths } from '../admin/sudo.ts'
import { BaseCommand } from '../cli/base-command.ts'
import { jsonFlag } from '../cli/flags.ts'
import { createLogRenderer } from '../cli/render/log.ts'
import { getColumns } from '../cli/terminal.ts'
import { mirrorPaths } from '../config/paths.ts'
import { getErrno, exitCode, MirrorError } from '../lib/errors.ts'
import { parseObject } from '../lib/json.ts'
import type { CommandEnvironment } from '../lib/process.ts'

export default class Logs extends BaseCommand {
  static override summary = 'Show the log, with a summary of each pull and push'
  static override description = [
    'A line shows the source of the response, the requested content, its size, the time and the client:',
    '19:01:40 HIT GET docker.io/library/redis blob 12.6 MiB 79 ms docker/20.10.24',
    '',
    'HIT: from the cache; (checked): the upstream has confirmed the tag',
    'STALE: from the cache, because the upstream did not answer',
    'MISS: fetched from the upstream; JOINED: joined a fetch in progress',
    'PASSED: answered by the upstream, not cached',
    '(evicted 2 h ago), (removed), (moved) …: why content was not served from the store',
    'LOCAL, OK: read from or written to the registry for pushed images',
    'ABSENT: a HEAD request for missing content, as before each push',
    'CHECK: the test image of `mirror configure --check`; not counted',
    'PULL, PUSH: the summary of one pull or push',
    '',
    'Times are local; lines of another day are below its date. The text is the same on a terminal and in a pipe; --json prints the log as it is, in JSON.',
  ].join('\n')
  static override examples = [
    '<%= config.bin %> <%= command.id %> -f',
    '<%= config.bin %> <%= command.id %> --lines 1000 | grep PULL',
    '<%= config.bin %> <%= command.id %> --json | jq .msg',
  ]
  static override flags = {
    follow: boolean({ char: 'f', description: 'keep printing new lines until Ctrl-C' }),
    lines: integer({
      char: 'n',
      description: 'number of last lines to print',
      default: 200,
      min: 0,
      helpValue: 'N',
    }),
    json: jsonFlag,
  }

  override async run(): Promise<void> {
    const { flags } = await this.parse(Logs)
    this.endWhenUnread()
    const { readLogs } = await import('../daemon/read-logs.ts')
    const { findRunningMirror } = await import('../admin/find-mirror.ts')
    const { systemClock } = await import('../lib/time.ts')
    const surroundings = this.getSurroundings()
    const { logFile } = mirrorPaths(surroundings)
    const found = await findRunningMirror(surroundings)
    if (found?.user) throw createForeignLogError(found.user.name)
    if (found === undefined) refuseForeignPaths(surroundings)
    const running = found?.running
    const render = flags.json
      ? toJson
      : createLogRenderer({
          colors: this.getColorsFor(process.stdout),
          // Measure each time, because a terminal may be resized while it shows the log.
          columns: () => getColumns(process.stdout),
          now: Date.now(),
        })
    const write = (line: string) => this.print(render(line))
    const container = running?.container ?? (running ? undefined : await this.findEndedContainer(surroundings))
    if (container) {
      const { readContainerLogs } = await import('../daemon/container/stop.ts')
      const request = { lines: flags.lines, follow: flags.follow, signal: this.interrupted }
      for await (const line of readContainerLogs(surroundings, container, request)) write(line)
      return
    }
    if (running !== undefined && running.logFile === undefined)
      this.info(`mirror (pid ${running.pid}) logs to its own stderr. This is the log of an earlier one.`)

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
      if (getErrno(error) !== 'ENOENT') throw error
      throw new MirrorError('There is no log yet: `mirror up` has not started a mirror in the background.', {
        exit: exitCode.notRunning,
        hints: ['mirror up'],
        cause: error,
      })
    }
  }

  /** Finds the container of a mirror that has died; the engine keeps its log. */
  private async findEndedContainer(surroundings: CommandEnvironment): Promise<ContainerRecord | undefined> {
    const paths = mirrorPaths(surroundings)
    const { readState } = await import('../admin/state.ts')
    const container = (await readState(paths.stateFile))?.container
    if (container === undefined) return undefined
    const { findDeadMirror } = await import('../admin/find-mirror.ts')
    return (await findDeadMirror(paths, surroundings))?.hasLog ? container : undefined
  }
}

/** Creates the error for the log of another user: root opens no file that a user names. */
function createForeignLogError(user: string): MirrorError {
  return new MirrorError(`Root runs no mirror. The mirror of ${user} is running, and only ${user} can read its log.`, {
    exit: exitCode.notRunning,
    hints: [`mirror logs   (without sudo, as ${user})`],
  })
}

/** Returns a line of JSON as it is, and puts any other text, of a crash, into JSON. */
function toJson(line: string): string {
  return parseObject(line) === undefined ? JSON.stringify({ msg: line }) : line
}
