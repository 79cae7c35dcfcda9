import { resolve } from 'node:path'
import { string as stringArgument } from '@oclif/core/args'
import { boolean, string } from '@oclif/core/flags'
import type { InferredFlags } from '@oclif/core/interfaces'
import { BaseCommand } from '../cli/base-command.ts'
import { dryRunFlag, jsonFlag, versionFlag, yesFlag } from '../cli/flags.ts'
import { isDebugging, renderError } from '../cli/render/log.ts'
import { type Colors, createPrompt, getColumns, NotInteractiveError, type Terminal } from '../cli/terminal.ts'
import type { ClientAdapter, ConfigTarget, Machine } from '../clients/types.ts'
import { exitCode, type ExitCode, combineExitCodes, MirrorError } from '../lib/errors.ts'
import { redact } from '../lib/logger.ts'

export default class Configure extends BaseCommand {
  static override summary = 'Configure a client to pull through the mirror'
  static override description = `Shows a diff and asks before it writes; everything else in your files stays as it is. --check writes nothing.
Without CLIENT it offers the clients of this machine; --check, --undo and --list apply to all that are configured.
Clients: docker, podman, containerd, kind, k3d, k3s, minikube, buildkit, kaniko, testcontainers, skaffold and tilt.`
  static override examples = [
    '<%= config.bin %> <%= command.id %> docker',
    '<%= config.bin %> <%= command.id %> kind | kind create cluster --config -',
    '<%= config.bin %> <%= command.id %> podman --scope user --yes',
    '<%= config.bin %> <%= command.id %> docker --check',
    '<%= config.bin %> <%= command.id %> docker --undo --reload',
    '<%= config.bin %> <%= command.id %> --list',
  ]
  static override args = {
    client: stringArgument({
      description: 'client to configure (default: choose from those found)',
    }),
  }
  static override flags = {
    list: boolean({
      description: 'list what is configured, where, and since when',
      exclusive: ['undo', 'check'],
    }),
    undo: boolean({ description: 'undo what `mirror configure` wrote', exclusive: ['check'] }),
    check: boolean({
      description: 'verify with a test pull (exit code 5 when it fails)',
    }),
    reload: boolean({
      description: 'reload the client now, without a restart',
    }),
    'no-fallback': boolean({
      description: 'do not fall back to the registry without the mirror',
    }),
    mirror: string({
      description: 'address of the mirror (default: the running one)',
      helpValue: 'URL',
    }),
    ca: string({
      description: 'CA certificate (PEM) of the mirror (default: tls.ca)',
      helpValue: 'FILE',
    }),
    root: string({
      description: 'write below DIR, contact no daemon (default: / and ~)',
      helpValue: 'DIR',
    }),
    scope: string({
      description: "user or system configuration (default: the client's)",
      options: ['user', 'system'],
    }),
    file: string({
      description: "file to merge into (default: the client's own)",
      helpValue: 'FILE',
    }),
    cluster: string({
      description: 'kind cluster or minikube profile (default: none)',
      helpValue: 'NAME',
    }),
    'client-version': versionFlag({ description: 'version of the client (default: the installed one)' }),
    'image-store': string({
      description: "Docker's image store (default: the one in use)",
      options: ['classic', 'containerd'],
    }),
    diff: boolean({ description: 'show the whole diff, including similar parts' }),
    yes: yesFlag,
    'dry-run': dryRunFlag,
    json: jsonFlag,
  }

  /** Lists the clients whose files were written or restored so far. */
  readonly #done: string[] = []
  readonly #failures = createFailureReporter((text) => this.info(text), this.getColorsFor(process.stderr))

  override async run(): Promise<void> {
    const { args, flags } = await this.parse(Configure)
    try {
      await this.runAction(args.client, flags)
    } catch (error) {
      throw addDoneClients(error, this.#done)
    }
    if (flags.list || flags['dry-run']) return
    if (!flags.undo) await this.refreshCredentials()
    const { tellConfiguredClients } = await import('../clients/tell-mirror.ts')
    await tellConfiguredClients(this.getSurroundings())
  }

  private async runAction(client: string | undefined, flags: ParsedFlags): Promise<void> {
    const { describeMachine } = await import('../clients/adapters.ts')
    const { refuseForeignFlags } = await import('../admin/sudo.ts')
    const { describeStrayRecords } = await import('../clients/records.ts')
    const surroundings = this.getSurroundings()
    refuseForeignFlags(flags, ['root', 'file', 'ca'], surroundings)
    const machine = await describeMachine(surroundings, flags.root)
    const stray = await describeStrayRecords(surroundings)
    if (stray !== undefined) this.info(stray)
    if (flags.list) return this.list(machine, client, flags)
    if (flags.undo) return this.undo(machine, client, flags)
    if (flags.check && client === undefined) return this.checkConfigured(machine, flags)
    const adapters = await this.chooseAdapters(machine, client, flags)
    if (adapters === undefined) return
    // Report a missing mirror once, because it concerns all of several clients.
    if (adapters.length > 1) await this.findMirror(machine, flags)
    const { forEachInTurn } = await import('../cli/configure-flow.ts')
    const failures: object[] = []
    const { done, failed } = await forEachInTurn(
      adapters,
      async (adapter) => {
        const target = await this.chooseTargetFor(machine, adapter, flags)
        if (flags.check) return this.check(machine, adapter.client, target, flags)
        return { report: await this.configure(machine, adapter, target, flags), exit: exitCode.done }
      },
      ({ client }, error) => {
        failures.push({ client, error: redact(error.message) })
        this.#failures.report(`Failed: ${client}.`, error)
      },
    )
    const reports = [...done.map(({ report }) => report), ...failures]
    // Print one JSON document: an object for the named client, or a list for the clients that were found.
    if (flags.json) this.printJson(client === undefined ? reports : reports[0])
    this.endWith([...failed, ...done.map(({ exit }) => exit)])
  }

  protected override async catch(failure: Error & { oclif?: { exit?: number } }): Promise<void> {
    const { renderDocumentRefusal } = await import('../cli/configure-flow.ts')
    const refusal = process.stdout.isTTY ? undefined : await renderDocumentRefusal(this.argv, failure)
    if (refusal !== undefined) this.print(refusal)
    await super.catch(failure)
  }

  private async configure(
    machine: Machine,
    adapter: ClientAdapter,
    target: ConfigTarget,
    flags: ParsedFlags,
  ): Promise<object> {
    const { getRootArguments, configureInteractively, toChoices, toClientOptions } =
      await import('../cli/configure-flow.ts')
    if (!flags['dry-run'] && flags.mirror === undefined) await adapter.prepare?.(machine, toClientOptions(flags))
    const mirror = await this.findMirror(machine, flags)
    const request = { machine, adapter, target, mirror, args: getRootArguments(adapter.client, target, flags) }
    const report = await configureInteractively(this.terminal, request, {
      ...toChoices(flags),
      fallback: !flags['no-fallback'],
    })
    this.#done.push(adapter.client)
    return report
  }

  private async findMirror({ cwd }: Machine, { mirror, ca }: ParsedFlags) {
    const { findMirrorAddress } = await import('../clients/find-mirror.ts')
    return findMirrorAddress(this.getSurroundings(), {
      url: mirror,
      caFile: ca === undefined ? undefined : resolve(cwd, ca),
    })
  }

  private async undo(machine: Machine, client: string | undefined, flags: ParsedFlags): Promise<void> {
    const { findRecords } = await import('../clients/undo.ts')
    const { forEachInTurn, toChoices, undoInteractively } = await import('../cli/configure-flow.ts')
    const { scope, cluster, file } = flags
    const records = await findRecords(machine, { client, scope, cluster, file })
    const failures: object[] = []
    const { done, failed } = await forEachInTurn(
      records,
      async (record) => {
        const undone = await undoInteractively(this.terminal, machine, record, toChoices(flags))
        this.#done.push(record.client)
        return undone
      },
      ({ client: name, place, title }, error) => {
        failures.push({ client: name, place, error: redact(error.message) })
        this.#failures.report(`Failed: ${name}, ${title}.`, error)
      },
    )
    if (flags.json) this.printJson({ undone: done, failed: failures })
    else if (records.length === 0) {
      this.report(`Nothing to undo${client === undefined ? '' : ` for ${client}`}.`)
      const { findUndoCommandsBelowRoots } = await import('../clients/undo.ts')
      const others = await findUndoCommandsBelowRoots(machine, client)
      if (others.length > 0) this.info(['Configured with --root:', ...others.map((one) => `  ${one}`)].join('\n'))
    }
    this.endWith(failed)
  }

  /** Checks every target that is configured. */
  private async checkConfigured(machine: Machine, flags: ParsedFlags): Promise<void> {
    const { findCheckableTargets } = await import('../clients/configured.ts')
    const { forEachInTurn } = await import('../cli/configure-flow.ts')
    const { scope, cluster, file } = flags
    const { checkable, uncheckable } = await findCheckableTargets(machine, {
      client: undefined,
      scope,
      cluster,
      file,
    })
    // Report a missing mirror once, because it concerns all of them.
    const { getAdminForCheck } = await import('../clients/check.ts')
    await getAdminForCheck(this.getSurroundings())
    const unchecked: object[] = []
    for (const { client, place, title } of uncheckable) {
      unchecked.push({ client, place, skipped: 'cannot run a pull on this machine' })
      this.info(`Not checked, because it cannot run a pull on this machine: ${client}, ${title}.`)
    }
    const { done, failed } = await forEachInTurn(
      checkable,
      ({ record, target }) => this.check(machine, record.client, target, flags),
      ({ record: { client, place, title } }, error) => {
        unchecked.push({ client, place, error: redact(error.message) })
        this.#failures.report(`Failed: ${client}, ${title}.`, error)
      },
    )
    if (flags.json) this.printJson([...done.map(({ report }) => report), ...unchecked])
    this.endWith([...failed, ...done.map(({ exit }) => exit)])
  }

  private async check(machine: Machine, client: string, target: ConfigTarget, { json }: ParsedFlags) {
    const { checkClient } = await import('../clients/check.ts')
    const { renderCheck } = await import('../cli/render/configure.ts')
    const result = await checkClient(this.getSurroundings(), machine, client, target)
    if (!json) this.report(renderCheck(client, result, this.getColorsFor(process.stdout)))
    const report = { client, place: target.id, ...result }
    return { report, exit: result.seen ? exitCode.done : exitCode.checkFailed }
  }

  private endWith(codes: readonly ExitCode[]): void {
    this.#failures.end()
    const exit = combineExitCodes(codes)
    if (exit !== exitCode.done) this.exit(exit)
  }

  private async list(machine: Machine, client: string | undefined, { json }: ParsedFlags): Promise<void> {
    const { listConfigured } = await import('../clients/configured.ts')
    const { renderConfigured } = await import('../cli/render/configure.ts')
    const { findStaleClients } = await import('../clients/stale-clients.ts')
    const stale = machine.detached ? [] : await findStaleClients(this.getSurroundings())
    const clients = await listConfigured(machine, client, stale)
    if (json) return this.printJson(clients)
    this.print(renderConfigured(clients, client, this.getColorsFor(process.stdout), getColumns(process.stdout)))
  }

  /** Chooses the named client, or among those that are found; undefined when they were only listed. */
  private async chooseAdapters(
    machine: Machine,
    name: string | undefined,
    flags: ParsedFlags,
  ): Promise<readonly ClientAdapter[] | undefined> {
    const { getAdapter } = await import('../clients/adapters.ts')
    if (name !== undefined) return [await getAdapter(name)]
    const { findClients, isForRoot, listDefaultTargets } = await import('../clients/adapters.ts')
    const { getFirstCommand } = await import('../clients/records.ts')
    const installed = await findClients(machine)
    const found = await Promise.all(
      installed.map(async ({ adapter, what }) => {
        const [target] = flags.yes || flags.json ? [] : await listDefaultTargets(machine, adapter)
        const rootCommand =
          target && (await isForRoot(target)) ? await getFirstCommand(machine, adapter.client, target) : undefined
        return { adapter, what, rootCommand }
      }),
    )
    const isNone = found.length === 0
    if (isNone && !flags.json)
      this.report('No client was found on this machine. Configure one anyway with: mirror configure CLIENT')
    else if (flags.yes) return found.map(({ adapter }) => adapter)
    else if (flags.json) this.printJson(found.map(({ adapter, what }) => ({ client: adapter.client, found: what })))
    else if (this.terminal.prompt && !flags['dry-run']) {
      const forRoot = found.flatMap(({ what, rootCommand }) => (rootCommand ? [`  ${what}: ${rootCommand}`] : []))
      if (forRoot.length > 0) this.info(['Only root can configure these:', ...forRoot].join('\n'))
      const own = found.filter(({ rootCommand }) => rootCommand === undefined)
      if (own.length === 0) return undefined
      const choices = own.map(({ adapter, what }) => ({
        name: what,
        description: adapter.summary,
        short: adapter.client,
        value: adapter,
      }))
      return this.terminal.prompt.pick('Configure which clients?', choices)
    } else {
      const lines = found.map(
        ({ adapter, what, rootCommand }) => `  ${what}: ${rootCommand ?? `mirror configure ${adapter.client}`}`,
      )
      this.report(['Found on this machine:', ...lines].join('\n'))
    }
    return undefined
  }

  private async chooseTargetFor(machine: Machine, adapter: ClientAdapter, flags: ParsedFlags): Promise<ConfigTarget> {
    const { createFileRefusal, toClientOptions } = await import('../cli/configure-flow.ts')
    const targets = await adapter.findTargets(machine, toClientOptions(flags))
    const file = flags.file === undefined ? undefined : resolve(machine.cwd, flags.file)
    if (file !== undefined && !targets.some(({ inputs }) => inputs.files.includes(file)))
      throw await createFileRefusal(adapter.client, file)
    const { chooseTarget } = await import('../clients/configured.ts')
    const defaultTarget = await chooseTarget(machine, { client: adapter.client, targets, ...flags })
    const asks = targets.length > 1 && !flags.yes && !flags['dry-run'] && !flags.check && !flags.json
    if (!asks || !this.terminal.prompt) return defaultTarget
    const { isForRoot } = await import('../clients/adapters.ts')
    const areForRoot = await Promise.all(targets.map(isForRoot))
    const own = targets.filter((_, at) => !areForRoot[at])
    if (own.length < 2) return own[0] ?? defaultTarget
    return this.terminal.prompt.choose(
      'Which configuration?',
      own.map((target) => ({ name: target.title, value: target })),
    )
  }

  private get terminal(): Terminal {
    return {
      print: (text) => this.print(text),
      report: (text) => this.report(text),
      printJson: (value) => this.printJson(value),
      info: (text) => this.info(text),
      colors: this.getColorsFor(process.stdout),
      stderrColors: this.getColorsFor(process.stderr),
      columns: getColumns(process.stdout),
      prompt: createPrompt(process.stdin, process.stdout),
    }
  }
}

type ParsedFlags = InferredFlags<typeof Configure.flags>

/** Adds to an interruption the clients that were configured before it. */
function addDoneClients(error: unknown, done: readonly string[]): unknown {
  const isInterrupt = error instanceof MirrorError && error.exit === exitCode.interrupted
  if (!isInterrupt || done.length === 0) return error
  const what = error.message.replace(/^Interrupted: nothing was done\.$/, 'Interrupted.')
  return new MirrorError(`${what} Done before: ${done.join(', ')}.`, {
    exit: exitCode.interrupted,
    hints: [...error.hints, 'mirror configure --list   (what is configured now)'],
    cause: error,
  })
}

/**
 * Creates a reporter of the failures of several items. A missing terminal is no failure of one of them, and is reported once, at
 * the end.
 */
function createFailureReporter(info: (text: string) => void, colors: Colors) {
  const render = (error: Error) => renderError(error, colors, { debug: isDebugging(process.env) }).trimEnd()
  let notInteractive: NotInteractiveError | undefined
  return {
    /** Reports the failure of one of several items; the others continue. Its files may be written: perhaps only the reload failed. */
    report(title: string, error: Error): void {
      if (error instanceof NotInteractiveError) notInteractive = error
      else info(`${title}\n${render(error)}`)
    },
    /** Reports the failure that all of them share. */
    end(): void {
      if (notInteractive !== undefined) info(render(notInteractive))
    },
  }
}
