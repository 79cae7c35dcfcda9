import { BaseCommand } from '../../cli/base-command.ts'
import { dryRunFlag, jsonFlag } from '../../cli/flags.ts'
import { mirrorPaths } from '../../config/paths.ts'
import { exitCode, MirrorError } from '../../lib/errors.ts'

export default class CredentialsRefresh extends BaseCommand {
  static override summary = "Re-send the container's credentials"
  static override description =
    'Some credentials expire within hours (Amazon ECR: 12 h). An expired one counts as none, and `mirror status` says so. ' +
    '`mirror up` re-sends credentials, too; `mirror status` and `mirror configure` do so when they are older than ten minutes.'
  static override examples = [
    '<%= config.bin %> <%= command.id %>',
    '<%= config.bin %> <%= command.id %> --dry-run --json',
  ]
  static override flags = { json: jsonFlag, 'dry-run': dryRunFlag }

  override async run(): Promise<void> {
    const { flags } = await this.parse(CredentialsRefresh)
    const registries = flags['dry-run'] ? await this.listExportedRegistries() : await this.refresh()
    if (registries === undefined)
      throw new MirrorError('No mirror is running in a container; a process needs no credentials re-sent.', {
        exit: exitCode.notRunning,
        hints: ['mirror up --runtime container --credentials HOST'],
      })
    if (flags.json) return this.printJson({ registries, dryRun: flags['dry-run'] })
    if (registries.length === 0) return this.print('The container has no credentials.')
    this.print(
      `${flags['dry-run'] ? 'Would re-send the credentials of' : 'Re-sent the credentials of'} ${registries.join(', ')}`,
    )
  }

  private async listExportedRegistries(): Promise<string[] | undefined> {
    const { findRunning } = await import('../../admin/state.ts')
    return (await findRunning(mirrorPaths(this.getSurroundings()).stateFile))?.container?.credentials
  }

  private async refresh(): Promise<string[] | undefined> {
    const { refreshCredentials } = await import('../../daemon/container/credentials.ts')
    const { systemClock } = await import('../../lib/time.ts')
    return refreshCredentials(this.getOwnSurroundings(), systemClock)
  }
}
