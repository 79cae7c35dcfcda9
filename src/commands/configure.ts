import { resolve } from 'node:path'
import { string as stringArgument } from '@oclif/core/args'
import { boolean, string } from '@oclif/core/flags'
import type { InferredFlags } from '@oclif/core/interfaces'
import { BaseCommand } from '../cli/base-command.ts'
import { dryRunFlag, jsonFlag, yesFlag } from '../cli/flags.ts'
import { argumentsFor, choicesOf, createFailureTeller, optionsOf, withDone } from '../cli/configure-arguments.ts'
import { createPrompt, type Terminal } from '../cli/terminal.ts'
import type { ClientAdapter, ConfigTarget, Machine } from '../clients/types.ts'
import { exitCode, type ExitCode, gravest } from '../lib/errors.ts'
import { redact } from '../lib/logger.ts'

export default class Configure extends BaseCommand {
  static override summary = "Write a client's configuration, so that it pulls through the mirror"
  static override description = `Shows the difference and asks before it writes; everything else in your files stays as it is.
Without CLIENT it looks for the clients of this machine and offers them; --check, --undo and --list are about all that are configured.`
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
      description:
        'docker, podman, containerd, kind, k3d, k3s, minikube, buildkit, kaniko, testcontainers, skaffold or tilt',
    }),
  }
  static override flags = {
    list: boolean({
      description: 'what is configured, where, and since when',
      exclusive: ['undo', 'check'],
    }),
    undo: boolean({ description: 'put back what was there before', exclusive: ['check'] }),
    check: boolean({
      description: 'prove by a pull that the client comes through the mirror; writes nothing, exit 5 when it does not',
    }),
    reload: boolean({
      description: 'have the client take notice at once, without a restart',
    }),
    'no-fallback': boolean({
      description: 'no way to the origin when the mirror fails, for clients that can be told so',
    }),
    mirror: string({
      description: 'the address of the mirror, instead of that of the running one',
      helpValue: 'URL',
    }),
    ca: string({
      description: 'the CA of a mirror with TLS, as PEM, instead of the one that tls in mirror.yaml means',
      helpValue: 'FILE',
    }),
    root: string({
      description: 'write below this folder instead of / and ~, and speak to no daemon',
      helpValue: 'DIR',
    }),
    scope: string({ description: 'whose configuration', options: ['user', 'system'] }),
    file: string({
      description: 'a file of yours to merge into, where the client has one',
      helpValue: 'FILE',
    }),
    cluster: string({
      description: 'the cluster, by name: of kind one that runs, of minikube a profile',
      helpValue: 'NAME',
    }),
    'client-version': string({
      description: 'the version to write for, instead of the one found',
      helpValue: 'V',
    }),
    'image-store': string({
      description: "Docker's image store, instead of the one found",
      options: ['classic', 'containerd'],
    }),
    diff: boolean({ description: 'show every file and table of the difference, also those that are alike' }),
    yes: yesFlag,
    'dry-run': dryRunFlag,
    json: jsonFlag,
  }

  /** The clients whose files were written, or put back, so far. */
  readonly #written: string[] = []
  readonly #failures = createFailureTeller((text) => this.info(text), this.colorsFor(process.stderr))

  override async run(): Promise<void> {
    const { args, flags } = await this.parse(Configure)
    try {
      await this.carryOut(args.client, flags)
    } catch (error) {
      throw withDone(error, this.#written)
    }
    if (!flags.list && !flags.undo && !flags['dry-run']) await this.refreshCredentials()
  }

  private async carryOut(client: string | undefined, flags: ConfigureFlags): Promise<void> {
    const { machineAt } = await import('../clients/adapters.ts')
    const { refuseOthersFlags } = await import('../admin/sudo.ts')
    const { describeStrayRecords } = await import('../clients/stray-records.ts')
    const surroundings = this.surroundings()
    refuseOthersFlags(flags, ['root', 'file', 'ca'], surroundings)
    const machine = await machineAt(surroundings, flags.root)
    const stray = await describeStrayRecords(surroundings)
    if (stray !== undefined) this.info(stray)
    if (flags.list) return this.list(machine, client, flags)
    if (flags.undo) return this.undo(machine, client, flags)
    if (flags.check && client === undefined) return this.checkConfigured(machine, flags)
    const adapters = await this.adaptersFor(machine, client, flags)
    if (adapters === undefined) return
    // What none of several can do without is told once.
    if (adapters.length > 1) await this.findMirror(machine, flags)
    const { eachInTurn } = await import('../cli/configure-flow.ts')
    const failures: object[] = []
    const { done, failed } = await eachInTurn(
      adapters,
      async (adapter) => {
        const place = await this.placeFor(machine, adapter, flags)
        if (flags.check) return this.check(machine, adapter.client, place, flags)
        return { report: await this.configure(machine, adapter, place, flags), exit: exitCode.done }
      },
      ({ client }, error) => {
        failures.push({ client, error: redact(error.message) })
        this.#failures.tell(`Failed: ${client}.`, error)
      },
    )
    const reports = [...done.map(({ report }) => report), ...failures]
    // One document, whatever is in it: an object for the client that was named, a list for those that were found.
    if (flags.json) this.printJson(client === undefined ? reports : reports[0])
    this.endWith([...failed, ...done.map(({ exit }) => exit)])
  }

  protected override async catch(failure: Error & { oclif?: { exit?: number } }): Promise<void> {
    const { configureRefusal } = await import('../cli/configure-arguments.ts')
    const refusal = process.stdout.isTTY ? undefined : await configureRefusal(this.argv, failure)
    if (refusal !== undefined) this.print(refusal)
    await super.catch(failure)
  }

  private async configure(
    machine: Machine,
    adapter: ClientAdapter,
    place: ConfigTarget,
    flags: ConfigureFlags,
  ): Promise<object> {
    const { configureDialog } = await import('../cli/configure-flow.ts')
    if (!flags['dry-run'] && flags.mirror === undefined) await adapter.prepare?.(machine, optionsOf(flags))
    const mirror = await this.findMirror(machine, flags)
    const request = { machine, adapter, place, mirror, args: argumentsFor(adapter.client, place, flags) }
    const report = await configureDialog(this.terminal, request, {
      ...choicesOf(flags),
      fallback: !flags['no-fallback'],
    })
    this.#written.push(adapter.client)
    return report
  }

  private async findMirror({ cwd }: Machine, { mirror, ca }: ConfigureFlags) {
    const { findMirror } = await import('../clients/find-mirror.ts')
    return findMirror(this.surroundings(), { url: mirror, caFile: ca === undefined ? undefined : resolve(cwd, ca) })
  }

  private async undo(machine: Machine, client: string | undefined, flags: ConfigureFlags): Promise<void> {
    const { recordsOf } = await import('../clients/undo.ts')
    const { eachInTurn } = await import('../cli/configure-flow.ts')
    const { undoDialog } = await import('../cli/configure-flow.ts')
    const { scope, cluster, file } = flags
    const records = await recordsOf(machine, { client, scope, cluster, file })
    const failures: object[] = []
    const { done, failed } = await eachInTurn(
      records,
      async (record) => {
        const undone = await undoDialog(this.terminal, machine, record, choicesOf(flags))
        this.#written.push(record.client)
        return undone
      },
      ({ client: name, place, title }, error) => {
        failures.push({ client: name, place, error: redact(error.message) })
        this.#failures.tell(`Failed: ${name}, ${title}.`, error)
      },
    )
    if (flags.json) this.printJson({ undone: done, failed: failures })
    else if (records.length === 0) this.print(`Nothing to undo${client === undefined ? '' : ` for ${client}`}.`)
    this.endWith(failed)
  }

  /** Whatever is configured, wherever that is. */
  private async checkConfigured(machine: Machine, flags: ConfigureFlags): Promise<void> {
    const { configuredTargets: configuredPlaces } = await import('../clients/configured.ts')
    const { eachInTurn } = await import('../cli/configure-flow.ts')
    const { scope, cluster, file } = flags
    const { pulling, silent } = await configuredPlaces(machine, { client: undefined, scope, cluster, file })
    // What none of them can do without is told once.
    const { adminToCheckBy } = await import('../clients/check.ts')
    await adminToCheckBy(this.surroundings())
    const others: object[] = []
    for (const { client, place, title } of silent) {
      others.push({ client, place, skipped: 'cannot be made to pull from here' })
      this.info(`Not checked, because it cannot pull from here: ${client}, ${title}.`)
    }
    const { done, failed } = await eachInTurn(
      pulling,
      ({ record, place }) => this.check(machine, record.client, place, flags),
      ({ record: { client, place, title } }, error) => {
        others.push({ client, place, error: redact(error.message) })
        this.#failures.tell(`Failed: ${client}, ${title}.`, error)
      },
    )
    if (flags.json) this.printJson([...done.map(({ report }) => report), ...others])
    this.endWith([...failed, ...done.map(({ exit }) => exit)])
  }

  private async check(machine: Machine, client: string, place: ConfigTarget, { json }: ConfigureFlags) {
    const { checkClient } = await import('../clients/check.ts')
    const { renderCheck } = await import('../cli/render/configure.ts')
    const result = await checkClient(this.surroundings(), machine, client, place)
    if (!json) this.report(renderCheck(client, result, this.colorsFor(process.stdout)))
    const report = { client, place: place.id, ...result }
    return { report, exit: result.seen ? exitCode.done : exitCode.checkFailed }
  }

  private endWith(codes: readonly ExitCode[]): void {
    this.#failures.end()
    const exit = gravest(codes)
    if (exit !== exitCode.done) this.exit(exit)
  }

  private async list(machine: Machine, client: string | undefined, { json }: ConfigureFlags): Promise<void> {
    const { listConfigured } = await import('../clients/configured.ts')
    const { columnsOf, renderConfigured } = await import('../cli/render/configure.ts')
    const { findStaleClients } = await import('../clients/stray-records.ts')
    const stale = machine.detached ? [] : await findStaleClients(this.surroundings())
    const clients = await listConfigured(machine, client, stale)
    if (json) return this.printJson(clients)
    this.print(renderConfigured(clients, client, this.colorsFor(process.stdout), columnsOf(process.stdout)))
  }

  /** The client that was named, or those that are found here and chosen; undefined when they were only to be named. */
  private async adaptersFor(
    machine: Machine,
    name: string | undefined,
    flags: ConfigureFlags,
  ): Promise<readonly ClientAdapter[] | undefined> {
    const { adapterOf } = await import('../clients/adapters.ts')
    if (name !== undefined) return [await adapterOf(name)]
    const { findClients } = await import('../clients/adapters.ts')
    const found = await findClients(machine)
    const isNone = found.length === 0
    if (isNone && !flags.json) this.report('No client was found here. To write for one anyway: mirror configure CLIENT')
    else if (flags.yes) return found.map(({ adapter }) => adapter)
    else if (flags.json) this.printJson(found.map(({ adapter, what }) => ({ client: adapter.client, found: what })))
    else if (this.terminal.prompt && !flags['dry-run']) {
      const choices = found.map(({ adapter, what }) => ({ name: `${what}   ${adapter.summary}`, value: adapter }))
      return this.terminal.prompt.pick('Which of them shall pull through the mirror?', choices)
    } else {
      const lines = found.map(({ adapter, what }) => `  ${what}: mirror configure ${adapter.client}`)
      this.report(['Found on this machine:', ...lines].join('\n'))
    }
    return undefined
  }

  private async placeFor(machine: Machine, adapter: ClientAdapter, flags: ConfigureFlags): Promise<ConfigTarget> {
    const places = await adapter.targets(machine, optionsOf(flags))
    const file = flags.file === undefined ? undefined : resolve(machine.cwd, flags.file)
    if (file !== undefined && !places.some(({ wants }) => wants.files.includes(file))) {
      const { refusedFile } = await import('../cli/configure-arguments.ts')
      throw await refusedFile(adapter.client, file)
    }
    const { usualTarget: usualPlace } = await import('../clients/configured.ts')
    const first = await usualPlace(machine, { client: adapter.client, places, ...flags })
    const asks = places.length > 1 && !flags.yes && !flags['dry-run'] && !flags.check && !flags.json
    if (!asks || !this.terminal.prompt) return first
    return this.terminal.prompt.choose(
      'Where?',
      places.map((place) => ({ name: place.title, value: place })),
    )
  }

  private get terminal(): Terminal {
    return {
      print: (text) => this.print(text),
      report: (text) => this.report(text),
      printJson: (value) => this.printJson(value),
      info: (text) => this.info(text),
      colors: this.colorsFor(process.stdout),
      stderrColors: this.colorsFor(process.stderr),
      prompt: createPrompt(process.stdin, process.stdout),
    }
  }
}

type ConfigureFlags = InferredFlags<typeof Configure.flags>
