import { BaseCommand } from '../cli/base-command.ts'
import { configFlag } from '../cli/flags.ts'
import { MirrorError } from '../lib/errors.ts'

export default class Serve extends BaseCommand {
  static override summary = 'Run the server in the foreground, logging JSON to stderr'
  static override description =
    '`mirror up` and containers run this. SIGTERM or Ctrl-C ends it; pulls in flight get up to 30 s to finish.'
  static override examples = [
    '<%= config.bin %> <%= command.id %>',
    '<%= config.bin %> <%= command.id %> --config ./mirror.yaml',
    'MIRROR_CACHE_MAX_SIZE=50GiB <%= config.bin %> <%= command.id %>',
  ]
  static override flags = { config: configFlag }

  override async run(): Promise<void> {
    const { flags } = await this.parse(Serve)
    this.takeOverInterrupt()
    const { serveMirror } = await import('../daemon/serve.ts')
    const { listConfiguredClients } = await import('../clients/tell-mirror.ts')
    const surroundings = this.getOwnSurroundings({ MIRROR_CONFIG: flags.config })
    try {
      await serveMirror({
        surroundings,
        version: this.config.version,
        listConfigured: () => listConfiguredClients(surroundings),
      })
    } catch (error) {
      throw withServeHints(error)
    }
    this.exit()
  }
}

/** Names the variable in place of the flag of `mirror up` in the next steps, because `mirror serve` has no such flag. */
function withServeHints(error: unknown): unknown {
  if (!(error instanceof MirrorError)) return error
  const hints = error.hints.map((hint) =>
    hint.replace(
      /\bmirror up --(cache|registry|admin)-port (\d+)/,
      (_, name: string, port: string) => `MIRROR_${name.toUpperCase()}_PORT=${port} mirror serve`,
    ),
  )
  return new MirrorError(error.message, { exit: error.exit, hints, cause: error.cause })
}
