import { string as stringArgument } from '@oclif/core/args'
import { boolean, string } from '@oclif/core/flags'
import type { DoctorReport } from '../admin/activity.ts'
import { BaseCommand } from '../cli/base-command.ts'
import { dryRunFlag, durationFlag, jsonFlag, yesFlag } from '../cli/flags.ts'
import { createPrompt, getColumns } from '../cli/terminal.ts'
import type { DoctorRequest } from '../doctor/doctor.ts'
import { exitCode } from '../lib/errors.ts'

export default class Doctor extends BaseCommand {
  static override summary = 'Find what keeps clients from the mirror, and mend it'
  static override description =
    'Checks the mirror, its upstreams, its addresses and the clients of this machine, and names one command for each ' +
    'finding. --fix runs those commands that change only files of mirror. Exit code 5 when a check fails.'
  static override examples = [
    '<%= config.bin %> <%= command.id %>',
    '<%= config.bin %> <%= command.id %> kind docker --pull',
    '<%= config.bin %> <%= command.id %> --fix',
    '<%= config.bin %> <%= command.id %> --only upstreams --verbose',
    '<%= config.bin %> <%= command.id %> --json | jq \'.results[] | select(.state == "fail")\'',
  ]
  static override strict = false
  static override args = {
    client: stringArgument({ description: 'clients to check (default: all of this machine)' }),
  }
  static override flags = {
    fix: boolean({ description: 'run the commands that change only files of mirror' }),
    pull: boolean({ description: 'verify each configured client by a pull' }),
    only: string({
      description: 'run only these checks (default: all)',
      helpValue: 'ID',
      multiple: true,
      delimiter: ',',
    }),
    'list-checks': boolean({ description: 'list the checks and run none' }),
    timeout: durationFlag({ description: 'time for all checks without a pull (default: 4s)' }),
    verbose: boolean({ description: 'show what is well and what was skipped, too' }),
    yes: yesFlag,
    'dry-run': dryRunFlag,
    json: jsonFlag,
  }

  override async run(): Promise<void> {
    const { argv, flags } = await this.parse(Doctor)
    if (flags['list-checks']) return this.listChecks(flags.json)
    const request: DoctorRequest = {
      surroundings: this.getSurroundings(),
      version: this.config.version,
      clients: argv.map(String),
      only: flags.only ?? [],
      pull: flags.pull,
      timeoutMs: flags.timeout,
      elapsedMs: performance.now(),
    }
    const { runDoctor } = await import('../doctor/doctor.ts')
    const report = await runDoctor(request)
    const mended = flags.fix ? await this.fix(report, request, flags) : undefined
    const last = mended ?? report
    if (flags.json) this.printJson(last)
    // With --fix the first report is shown already.
    else if (mended !== undefined || !flags.fix) await this.show(last, request, flags.verbose)
    if (isComplete(request)) await this.sendReport(last)
    if (last.counts.fail > 0) process.exitCode = exitCode.checkFailed
    // End the programs that late checks still wait for.
    process.stdout.write('', () => process.exit())
  }

  private async listChecks(asJson: boolean): Promise<void> {
    const { checks } = await import('../doctor/checks.ts')
    if (asJson) return this.printJson(checks)
    const { renderChecks } = await import('../cli/render/doctor.ts')
    this.print(renderChecks(checks, this.getColorsFor(process.stdout), getColumns(process.stdout)))
  }

  private async show(report: DoctorReport, { clients }: DoctorRequest, verbose: boolean): Promise<void> {
    const { renderDoctor } = await import('../cli/render/doctor.ts')
    const style = {
      colors: this.getColorsFor(process.stdout),
      columns: getColumns(process.stdout),
      verbose,
      unicode: showsUnicode(process.env),
      areClientsNamed: clients.length > 0,
    }
    this.print(this.nameCommandsIn(renderDoctor(report, style)))
  }

  /** Runs the commands after a confirmation, then the checks again; undefined when there is nothing to run, or nobody agrees. */
  private async fix(
    report: DoctorReport,
    request: DoctorRequest,
    flags: { yes: boolean; 'dry-run': boolean; json: boolean; verbose: boolean },
  ): Promise<DoctorReport | undefined> {
    const { applyFixes, listMended, listOwnFixes } = await import('../doctor/fix.ts')
    const commands = listOwnFixes(report)
    if (!flags.json) await this.show(report, request, flags.verbose)
    if (commands.length === 0) {
      this.info('No command here changes only files of mirror, so there is nothing to run.')
      return undefined
    }
    this.info(
      ['', flags['dry-run'] ? 'Would run:' : 'To run:', ...commands.map((command) => `  ${command}`)].join('\n'),
    )
    if (flags['dry-run']) return undefined
    const { confirm } = await import('../cli/terminal.ts')
    const prompt = createPrompt(process.stdin, process.stderr)
    const question = commands.length === 1 ? 'Run this command?' : `Run these ${commands.length} commands?`
    if (!(await confirm({ prompt }, flags, question))) return undefined
    const { runCommand } = await import('../lib/process.ts')
    const applied = await applyFixes(commands, {
      runCommand,
      program: this.program,
      onStart: (command) => this.info(`Running: ${command}`),
    })
    for (const { command, failed } of applied) if (failed !== undefined) this.info(`Failed: ${command}\n${failed}`)
    const { runDoctor } = await import('../doctor/doctor.ts')
    const again = await runDoctor(request)
    for (const name of listMended(report, again)) this.info(`Mended: ${name}`)
    return again
  }

  /** Sends the report to the running mirror of this user for its dashboard. */
  private async sendReport(report: DoctorReport): Promise<void> {
    const { tellMirror } = await import('../admin/access.ts')
    await tellMirror(this.getSurroundings(), async (client, { user }) => {
      if (user === undefined) await client.doctor.store(report)
    })
  }
}

/** Reports whether a run includes all checks and clients. The findings of another one would replace the others in the dashboard. */
function isComplete({ clients, only }: Pick<DoctorRequest, 'clients' | 'only'>): boolean {
  return clients.length === 0 && only.length === 0
}

/** Reports whether a terminal can show more than ASCII, by its locale. */
function showsUnicode({ LC_ALL, LC_CTYPE, LANG, TERM }: NodeJS.ProcessEnv): boolean {
  if (TERM === 'linux') return false
  const locale = LC_ALL || LC_CTYPE || LANG
  return locale === undefined || locale === '' || /utf-?8/i.test(locale)
}
