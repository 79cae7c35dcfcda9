import { boolean, string } from '@oclif/core/flags'
import { BaseCommand } from '../cli/base-command.ts'
import {
  adminPortFlag,
  cachePortFlag,
  configFlag,
  credentialsFlag,
  dataFlag,
  dryRunFlag,
  toFlagVariables,
  imageFlag,
  jsonFlag,
  memoryFlag,
  networkFlag,
  noRegistryFlag,
  registryPortFlag,
} from '../cli/flags.ts'
import { createLogRenderer } from '../cli/render/log.ts'
import {
  type ClientOverview,
  suggestNextStep,
  renderContainerPlan,
  renderStale,
  renderUp,
  renderUpPlan,
} from '../cli/render/up.ts'
import { getColumns } from '../cli/terminal.ts'
import type { UpdatedClient } from '../clients/stale-clients.ts'
import { mirrorPaths } from '../config/paths.ts'
import type { UpPlan, UpReport } from '../daemon/up.ts'
import { exitCode, MirrorError } from '../lib/errors.ts'
import { type CommandEnvironment, quoteShellWord } from '../lib/process.ts'

export default class Up extends BaseCommand {
  static override summary = 'Start the mirror and return when it answers'
  static override description =
    'When the mirror is already running, a changed configuration or version replaces it, and the reason is printed. Pulls in ' +
    'flight get up to 30 s to finish. Flags hold for this start, mirror.yaml for every start. --image, --memory and --credentials are for --runtime container. Without --credentials ' +
    'the container keeps the ones that it has; "--credentials none" removes them.'
  static override examples = [
    '<%= config.bin %> <%= command.id %>',
    '<%= config.bin %> <%= command.id %> --cache-port 6055 --network dev',
    '<%= config.bin %> <%= command.id %> --runtime container --network k3d-dev',
    '<%= config.bin %> <%= command.id %> --autostart',
    '<%= config.bin %> <%= command.id %> --dry-run --json',
  ]
  static override flags = {
    foreground: boolean({ description: 'run in this process until SIGTERM or Ctrl-C' }),
    network: networkFlag,
    'cache-port': cachePortFlag,
    'registry-port': registryPortFlag,
    'admin-port': adminPortFlag,
    'no-registry': noRegistryFlag,
    data: dataFlag,
    config: configFlag,
    autostart: boolean({
      description: 'start again after a reboot (systemd user unit, launchd)',
      exclusive: ['foreground'],
    }),
    runtime: string({
      description: 'where the server runs (default: as before, or process)',
      options: ['process', 'container'],
    }),
    image: imageFlag,
    memory: memoryFlag,
    credentials: credentialsFlag,
    json: jsonFlag,
    'dry-run': dryRunFlag,
  }

  override async run(): Promise<void> {
    const { flags } = await this.parse(Up)
    await this.warnOfMisspelledVariables()
    const { planUp, upMirror } = await import('../daemon/up.ts')
    const { version } = this.config
    const surroundings = this.getOwnSurroundings(toFlagVariables(flags))
    const { readLastRuntime } = await import('../admin/state.ts')
    const release = this.cleanUpWhenInterrupted()
    if (!flags['dry-run']) {
      const { refreshSchema } = await import('../daemon/schema-file.ts')
      await refreshSchema(mirrorPaths(surroundings).configFile)
    }
    if ((flags.runtime ?? (await readLastRuntime(mirrorPaths(surroundings)))) === 'container')
      return this.startInContainer(surroundings, flags)
    this.warnOfContainerFlags()
    const plan = await planUp({ surroundings, version })
    const autostart = flags.autostart ? await this.prepareAutostart(surroundings, plan) : undefined

    if (flags['dry-run']) {
      const { action, changed } = plan
      if (flags.json)
        return this.printJson({ action, changed, ...toDroppedReport(plan), dryRun: true, autostart: autostart?.file })
      this.report(renderUpPlan(plan))
      if (autostart) this.report(`Would write ${autostart.file}.`)
      return this.warnOfUpstreams(plan, surroundings)
    }
    if (flags.foreground) return this.serve(plan, surroundings, release)

    const { systemClock } = await import('../lib/time.ts')
    const report = await upMirror(
      { surroundings, version, program: this.program, clock: systemClock, signal: this.interrupted },
      plan,
    )
    const notes = (await autostart?.install()) ?? []
    if (!flags.json) this.report(renderUp(report, this.getColorsFor(process.stdout), plan))
    await this.warnOfUpstreams(plan, surroundings)
    const clients = await this.findClients(surroundings)
    if (flags.json)
      return this.printJson({ ...report, clients: clients.stale.map(toClientReport), autostart: autostart?.file })
    this.reportStale(clients)
    if (autostart) this.report(`It starts again after a reboot: ${autostart.file}`)
    for (const note of notes) this.info(`  ${note}`)
    this.suggestNext(report, clients)
  }

  /** Warns of flags of a container. Their variables may be set for another start. */
  private warnOfContainerFlags(): void {
    const given = ['--image', '--memory', '--credentials'].filter((name) =>
      this.argv.some((arg) => arg === name || arg.startsWith(`${name}=`)),
    )
    if (given.length === 0) return
    const others = this.argv.filter(
      (arg, at) => arg !== '--runtime' && this.argv[at - 1] !== '--runtime' && !arg.startsWith('--runtime='),
    )
    const command = ['mirror up --runtime container', ...others.map(quoteShellWord)].join(' ')
    const [verb, object] = given.length === 1 ? ['has', 'it'] : ['have', 'them']
    this.info(
      `${given.join(' and ')} ${verb} no effect on a mirror that runs as a process. A mirror in a container uses ${object}: ${command}`,
    )
  }

  /**
   * Warns of each upstream that is reached by plain HTTP, and of each password that the server cannot read. A server that runs on has
   * its own variables.
   */
  private async warnOfUpstreams({ action, config }: UpPlan, { env }: CommandEnvironment): Promise<void> {
    if (action === 'nothing') return
    const { listPlainUpstreams, listUnreadablePasswords } = await import('../daemon/start-errors.ts')
    const { yellow } = this.getColorsFor(process.stderr)
    const warnings = [...listPlainUpstreams(config), ...(await listUnreadablePasswords(config, env))]
    for (const text of warnings) this.info(yellow(`  ${text}`))
  }

  /** Finds the configured clients, and rewrites the files of those with another address where that needs no consent. */
  private async findClients(surroundings: CommandEnvironment): Promise<ClientOverview> {
    const { findRecordFolders, openClientRecords } = await import('../clients/records.ts')
    try {
      const records = await openClientRecords(await findRecordFolders(surroundings)).list()
      const configured = records.filter(({ root, undone }) => root === undefined && undone !== true).length
      const { findClientsOnPath } = await import('../clients/adapters.ts')
      const machine = { ...surroundings, home: surroundings.homedir }
      if (configured === 0) return { configured, installed: await findClientsOnPath(machine), stale: [] }
      const { updateStaleClients } = await import('../clients/stale-clients.ts')
      const { systemClock } = await import('../lib/time.ts')
      return { configured, installed: [], stale: await updateStaleClients(surroundings, systemClock) }
    } catch (error) {
      if (!(error instanceof MirrorError)) throw error
      // Report the failure only, because the mirror itself is up.
      this.info(`Could not check the configured clients: ${error.message}`)
      return { configured: undefined, installed: [], stale: [] }
    }
  }

  private reportStale({ stale }: ClientOverview): void {
    if (stale.length > 0) this.report(renderStale(stale, this.getColorsFor(process.stdout)))
  }

  private suggestNext(report: UpReport, clients: ClientOverview): void {
    const next = suggestNextStep(report, clients)
    if (next !== undefined) this.info(`\n${next}`)
  }

  private async startInContainer(
    surroundings: CommandEnvironment,
    flags: {
      runtime?: string | undefined
      credentials?: string[] | undefined
      foreground: boolean
      autostart: boolean
      'dry-run': boolean
      json: boolean
    },
  ): Promise<void> {
    if (flags.foreground)
      throw new MirrorError('--foreground runs in this process, so it does not go with --runtime container.', {
        exit: exitCode.usage,
        hints: ['mirror up --runtime container && mirror logs -f', 'mirror up --runtime process --foreground'],
      })
    const { upMirrorInContainer, planContainerUp } = await import('../daemon/container/up.ts')
    const { withCommandLock } = await import('../daemon/container/stop.ts')
    const { systemClock } = await import('../lib/time.ts')
    const input = {
      surroundings,
      version: this.config.version,
      root: this.config.root,
      published: getPublishedImage(this.config.pjson),
      credentials: flags.credentials?.flatMap((hosts) => hosts.split(',')),
      // Remember the last runtime without the flag.
      remembered: flags.runtime === undefined,
      dryRun: flags['dry-run'],
      clock: systemClock,
      signal: this.interrupted,
      notify: (text: string) => this.info(text),
    }
    if (flags['dry-run']) {
      const plan = await planContainerUp(input)
      const { action, changed, connect, disconnect } = plan
      if (flags.json)
        return this.printJson({ action, changed, connect, disconnect, ...toDroppedReport(plan), dryRun: true })
      return this.report(renderContainerPlan(plan))
    }
    const { stateDir } = mirrorPaths(surroundings)
    const report = await withCommandLock({ ...input, stateDir }, async () =>
      upMirrorInContainer(await planContainerUp(input)),
    )
    if (!flags.json) this.report(renderUp(report, this.getColorsFor(process.stdout)))
    const clients = await this.findClients(surroundings)
    if (flags.json) return this.printJson({ ...report, clients: clients.stale.map(toClientReport) })
    this.reportStale(clients)
    if (flags.autostart) this.info('Docker starts it again whenever Docker itself starts.')
    this.suggestNext(report, clients)
  }

  private async prepareAutostart(surroundings: CommandEnvironment, plan: UpPlan) {
    const { getAutostart, createAutostartSpec, getAutostartWarnings } = await import('../daemon/autostart.ts')
    const autostart = getAutostart(surroundings)
    await autostart.check()
    return {
      file: autostart.file,
      install: async () => [
        ...(await autostart.install(createAutostartSpec(this.program, surroundings, plan.paths, { secrets: true }))),
        ...getAutostartWarnings(plan.config, surroundings, autostart.file),
      ],
    }
  }

  /** Runs the server in this process. */
  private async serve(plan: UpPlan, surroundings: CommandEnvironment, release: () => void): Promise<void> {
    const { action, running, paths, dropped } = plan
    if (action === 'nothing') return this.report(`mirror is already running (pid ${running!.pid}), in the background.`)
    await this.warnOfUpstreams(plan, surroundings)
    const { prepareRollback } = await import('../daemon/stop.ts')
    const [{ serveInPlace }, { serveMirror }, { listConfiguredClients }] = await Promise.all([
      import('../daemon/up.ts'),
      import('../daemon/serve.ts'),
      import('../clients/tell-mirror.ts'),
    ])
    const { systemClock } = await import('../lib/time.ts')
    const request = { paths, surroundings, clock: systemClock, program: this.program }
    const render = createLogRenderer({
      colors: this.getColorsFor(process.stderr),
      columns: () => getColumns(process.stderr),
      now: Date.now(),
    })
    await serveInPlace({
      serve: serveMirror,
      rollback: action === 'replace' ? await prepareRollback(running!, request) : undefined,
      signal: this.interrupted,
      onServing: release,
      surroundings,
      version: this.config.version,
      listConfigured: () => listConfiguredClients(surroundings),
      ...(process.stderr.isTTY && { writeLog: (line: string) => this.info(render(line.trimEnd())) }),
      onReady: (endpoints) => {
        const { version } = this.config
        const report = {
          outcome: 'started' as const,
          changed: [],
          pid: process.pid,
          version,
          endpoints,
          dropped,
          moved: [],
        } satisfies UpReport
        this.report(renderUp(report, this.getColorsFor(process.stdout)))
        // Do not wait: the server finds its networks a moment later.
        void this.findClients(surroundings).then((clients) => this.reportStale(clients))
      },
    })
    this.exit()
  }
}

/** Returns the image with which this version was published, from package.json; undefined in a clone. */
function getPublishedImage(manifest: object): string | undefined {
  return 'image' in manifest && typeof manifest.image === 'string' ? manifest.image : undefined
}

/** Converts the dropped parts for `--json`; left out when there are none. */
function toDroppedReport({ dropped }: Pick<UpPlan, 'dropped'>): Partial<Pick<UpPlan, 'dropped'>> {
  return dropped.networks.length + dropped.credentials.length > 0 ? { dropped } : {}
}

/** Converts a client with another address for `--json`. */
function toClientReport({ record: { client, place, title }, of, from, to, mend, rewritten }: UpdatedClient) {
  return { client, place, title, of, from, to: to ?? null, rewritten, ...(!rewritten && { mend }) }
}
