import { string as stringArgument } from '@oclif/core/args'
import { boolean, string } from '@oclif/core/flags'
import type { ClientAdapter, ClientPlace, Machine } from '../app/configure/client-adapter.ts'
import type { PreparedClient } from '../app/configure/configure-client.ts'
import type { PreparedUndo } from '../app/configure/undo-client.ts'
import type { InferredFlags } from '@oclif/core/interfaces'
import { BaseCommand } from '../cli/base-command.ts'
import { dryRunFlag, jsonFlag, yesFlag } from '../cli/flags.ts'
import { createPrompt, type Prompt } from '../cli/prompt.ts'
import { MirrorError, exitCode } from '../lib/errors.ts'

export default class Configure extends BaseCommand {
  static override summary = "Write a client's configuration, so that it pulls through the mirror"
  static override description = `Shows the difference and asks before it writes; everything else in your files stays as it is.
Without CLIENT it looks for the clients of this machine and offers them.`
  static override examples = [
    '<%= config.bin %> <%= command.id %> docker',
    '<%= config.bin %> <%= command.id %> kind | kind create cluster --config -',
    '<%= config.bin %> <%= command.id %> podman --scope user --yes',
    '<%= config.bin %> <%= command.id %> docker --check',
    '<%= config.bin %> <%= command.id %> docker --undo --reload',
    '<%= config.bin %> <%= command.id %> --list',
  ]
  static override args = {
    client: stringArgument({ description: 'docker, podman, containerd, kind, kaniko, buildkit, k3d …' }),
  }
  static override flags = {
    list: boolean({
      description: 'what is configured, where, since when',
      env: 'MIRROR_LIST',
      exclusive: ['undo', 'check'],
    }),
    undo: boolean({ description: 'put back what was there before', env: 'MIRROR_UNDO', exclusive: ['check'] }),
    check: boolean({
      description: 'prove by a pull that the client comes through the mirror; writes nothing, exit 5 when it does not',
      env: 'MIRROR_CHECK',
    }),
    reload: boolean({
      description: 'have the client take notice at once, without a restart',
      env: 'MIRROR_RELOAD',
    }),
    'no-fallback': boolean({
      description: 'no way to the origin when the mirror fails, for clients that can be told so',
      env: 'MIRROR_NO_FALLBACK',
    }),
    mirror: string({
      description: 'the address of the mirror, instead of that of the running one',
      helpValue: 'URL',
      env: 'MIRROR_URL',
    }),
    root: string({
      description: 'write below this folder instead of / and ~, and speak to no daemon',
      helpValue: 'DIR',
      env: 'MIRROR_ROOT',
    }),
    scope: string({ description: 'whose configuration', options: ['user', 'system'], env: 'MIRROR_SCOPE' }),
    file: string({
      description: 'a file of yours to merge into, where the client has one',
      helpValue: 'FILE',
      env: 'MIRROR_FILE',
    }),
    cluster: string({ description: 'a running cluster, by name', helpValue: 'NAME', env: 'MIRROR_CLUSTER' }),
    'client-version': string({
      description: 'the version to write for, instead of the one found',
      helpValue: 'V',
      env: 'MIRROR_CLIENT_VERSION',
    }),
    'image-store': string({
      description: "Docker's image store, instead of the one found",
      options: ['classic', 'containerd'],
      env: 'MIRROR_IMAGE_STORE',
    }),
    yes: yesFlag,
    'dry-run': dryRunFlag,
    json: jsonFlag,
  }

  override async run(): Promise<void> {
    const { args, flags } = await this.parse(Configure)
    const { machineAt } = await import('../app/configure/machine.ts')
    const machine = machineAt(this.surroundings(), flags.root)
    if (flags.list) return this.list(machine, flags)
    if (flags.undo) return this.undo(machine, args.client, flags)
    const adapters = await this.adaptersFor(machine, args.client, flags)
    for (const adapter of adapters) {
      if (flags.check) await this.check(machine, adapter, flags)
      else await this.configure(machine, adapter, flags)
    }
  }

  private async configure(machine: Machine, adapter: ClientAdapter, flags: ConfigureFlags): Promise<void> {
    const [{ findMirror }, { prepareClient, configureClient }] = await Promise.all([
      import('../app/configure/find-mirror.ts'),
      import('../app/configure/configure-client.ts'),
    ])
    const mirror = await findMirror(this.surroundings(), flags.mirror)
    const place = await this.placeOf(machine, adapter, flags)
    const prepared = await prepareClient({ machine, adapter, place, mirror, fallback: !flags['no-fallback'] })
    const { changes, output } = prepared.plan
    const silent = place.ours === true || changes.length === 0
    if (!flags.json && !silent) await this.showDiff(changes)
    if (!flags.json) await this.showNotes(prepared)

    const applies = !flags['dry-run'] && (silent || (await this.agrees(flags, 'Write this?')))
    if (applies) {
      await configureClient(prepared, new Date())
      if (flags.reload) await this.reload(place)
    }
    if (flags.json) return this.printJson(reportOf(prepared, applies))
    if (output !== undefined) process.stdout.write(output)
    if (flags['dry-run']) return
    if (changes.length === 0 && output === undefined) return this.print(`${adapter.client} is configured so already.`)
    if (!silent)
      this.print(`Configured ${adapter.client}: ${place.title}. Back: mirror configure ${adapter.client} --undo`)
  }

  private async undo(machine: Machine, client: string | undefined, flags: ConfigureFlags): Promise<void> {
    const [{ openConfiguredClients }, { prepareUndo, undoClient }] = await Promise.all([
      import('../clients/configured.ts'),
      import('../app/configure/undo-client.ts'),
    ])
    const { rootOf } = await import('../app/configure/configure-client.ts')
    if (client !== undefined) await this.adapter(client)
    const records = (await openConfiguredClients(machine.stateDir).list()).filter(
      (record) =>
        (client === undefined || record.client === client) &&
        record.root === rootOf(machine) &&
        (flags.scope === undefined || record.details['scope'] === flags.scope) &&
        (flags.cluster === undefined || record.details['cluster'] === flags.cluster),
    )
    if (records.length === 0) {
      if (flags.json) return this.printJson({ undone: [] })
      return this.print(
        `Nothing to undo: mirror has configured ${client === undefined ? 'no client' : `no ${client}`} here.`,
      )
    }
    const undone: object[] = []
    for (const record of records) {
      const prepared = await prepareUndo(machine, record)
      if (!flags.json) await this.showUndo(prepared)
      const applies = !flags['dry-run'] && (prepared.place.ours || (await this.agrees(flags, 'Put this back?')))
      if (applies) await undoClient(machine, prepared, flags.reload)
      undone.push({
        client: record.client,
        place: record.place,
        files: prepared.plan.changes.map(({ path }) => path),
        applied: applies,
      })
      if (!applies || flags.json) continue
      this.print(`${record.client} is as it was: ${record.title}.`)
      const { reload } = prepared.place
      if (reload && !flags.reload) this.say(`It keeps using the mirror until it takes notice. ${reload.byHand}`)
    }
    if (flags.json) this.printJson({ undone })
  }

  private async check(machine: Machine, adapter: ClientAdapter, flags: ConfigureFlags): Promise<void> {
    const { checkClient } = await import('../app/configure/check-client.ts')
    const place = await this.placeOf(machine, adapter, flags)
    const result = await checkClient(this.surroundings(), adapter, place)
    if (flags.json) this.printJson({ client: adapter.client, place: place.id, ...result })
    else {
      const { renderCheck } = await import('../cli/render-configure.ts')
      this.print(renderCheck(adapter.client, result, this.paintFor(process.stdout)))
    }
    if (!result.seen) this.exit(exitCode.checkFailed)
  }

  private async list(machine: Machine, flags: ConfigureFlags): Promise<void> {
    const { listConfigured } = await import('../app/configure/list-configured.ts')
    const clients = await listConfigured(machine)
    if (flags.json) return this.printJson(clients)
    const { renderConfigured } = await import('../cli/render-configure.ts')
    this.print(renderConfigured(clients, this.paintFor(process.stdout)))
  }

  private async adapter(name: string): Promise<ClientAdapter> {
    const { adapterOf } = await import('../app/configure/client-adapters.ts')
    return adapterOf(name)
  }

  /** The client that was named, or those that are found here and chosen. */
  private async adaptersFor(
    machine: Machine,
    name: string | undefined,
    flags: ConfigureFlags,
  ): Promise<readonly ClientAdapter[]> {
    if (name !== undefined) return [await this.adapter(name)]
    const { findClients } = await import('../app/configure/find-clients.ts')
    const found = await findClients(machine)
    if (flags.json && !flags.yes) {
      this.printJson(found.map(({ adapter, what }) => ({ client: adapter.client, found: what })))
      return []
    }
    if (found.length === 0) {
      this.print('No client was found on this machine. To configure one nevertheless: mirror configure CLIENT')
      return []
    }
    if (flags.yes) return found.map(({ adapter }) => adapter)
    const prompt = this.prompt()
    const choices = found.map(({ adapter, what }) => ({ name: `${what}   ${adapter.summary}`, value: adapter }))
    if (prompt && !flags['dry-run']) return prompt.pick('Which of them shall pull through the mirror?', choices)
    this.print(
      [
        'Found on this machine:',
        ...found.map(({ adapter, what }) => `  ${what}: mirror configure ${adapter.client}`),
      ].join('\n'),
    )
    return []
  }

  private async placeOf(machine: Machine, adapter: ClientAdapter, flags: ConfigureFlags): Promise<ClientPlace> {
    const places = await adapter.places(machine, {
      scope: flags.scope as 'user' | 'system' | undefined,
      clientVersion: flags['client-version'],
      imageStore: flags['image-store'] as 'classic' | 'containerd' | undefined,
      file: flags.file,
      cluster: flags.cluster,
    })
    const [first] = places
    if (first === undefined)
      throw new MirrorError(`There is no place for a configuration of ${adapter.client} here.`, {
        exit: exitCode.missing,
      })
    const prompt = flags.yes || flags['dry-run'] || flags.check || places.length === 1 ? undefined : this.prompt()
    if (!prompt) return first
    return prompt.choose(
      'Where?',
      places.map((place) => ({ name: place.title, value: place })),
    )
  }

  /** Whether to go on: by flag, or by the answer of a person; without either nothing is written. */
  private async agrees(flags: ConfigureFlags, question: string): Promise<boolean> {
    if (flags.yes) return true
    const prompt = this.prompt()
    if (prompt === undefined)
      throw new MirrorError('Nothing was written: nobody is there to agree to it.', {
        exit: exitCode.usage,
        hints: ['--yes   (agree beforehand)', '--dry-run   (only look)'],
      })
    return prompt.confirm(question)
  }

  private prompt(): Prompt | undefined {
    return createPrompt(process.stdin, process.stdout)
  }

  private async reload({ reload }: ClientPlace): Promise<void> {
    if (reload === undefined) return this.say('There is nothing to reload: it reads its configuration with every pull.')
    await reload.run()
    this.say(`Done: ${reload.says}.`)
  }

  private async showDiff(changes: PreparedClient['plan']['changes']): Promise<void> {
    const { renderDiff } = await import('../cli/render-diff.ts')
    process.stdout.write(await renderDiff(changes, this.paintFor(process.stdout)))
  }

  private async showNotes(prepared: PreparedClient): Promise<void> {
    const { renderNotes } = await import('../cli/render-configure.ts')
    this.say(renderNotes(prepared, this.paintFor(process.stderr)))
  }

  private async showUndo({ plan }: PreparedUndo): Promise<void> {
    await this.showDiff(plan.changes)
    for (const note of plan.notes) this.say(note)
  }
}

/** The flags of this command, parsed. */
type ConfigureFlags = InferredFlags<typeof Configure.flags>

function reportOf({ adapter, place, address, warning, plan }: PreparedClient, applied: boolean): object {
  return {
    client: adapter.client,
    place: place.id,
    mirror: address.cache,
    changes: plan.changes.map(({ path, before, after }) => ({
      path,
      action: before === undefined ? 'create' : after === undefined ? 'remove' : 'change',
    })),
    warnings: warning === undefined ? [] : [warning],
    notes: plan.notes,
    todo: plan.todo,
    ...(plan.output !== undefined && { output: plan.output }),
    applied,
  }
}
