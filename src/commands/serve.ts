import { BaseCommand } from '../cli/base-command.ts'
import { configFlag } from '../cli/flags.ts'

export default class Serve extends BaseCommand {
  static override summary = 'The server itself, in the foreground, with its log as JSON lines on stderr'
  static override description =
    'What `mirror up` and containers run. SIGTERM or Ctrl-C lets pulls in flight finish, up to 30 s.'
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
    const surroundings = this.ownSurroundings({ MIRROR_CONFIG: flags.config })
    await serveMirror({ surroundings, version: this.config.version })
    this.exit()
  }
}
