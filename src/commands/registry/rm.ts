import { string } from '@oclif/core/args'
import { BaseCommand } from '../../cli/base-command.ts'
import { dryRunFlag, jsonFlag, yesFlag } from '../../cli/flags.ts'
import { describeUnfreed, renderRemoval } from '../../cli/render/table.ts'

export default class RegistryRm extends BaseCommand {
  static override summary = 'Remove pushed images'
  static override description =
    'NAME is an image, a repository (all of its tags) or a digest, with or without the address of the registry: ' +
    'localhost:5001/app:1 is app:1. Content that nothing else needs is removed, too. The disk space of content that was ' +
    'pushed or requested within 24 h is freed by a later garbage collection. In a pattern, * and ? match within a part of ' +
    'the path or a tag, and ** matches across slashes; quote it, because shells expand it too. On a ' +
    'terminal, it asks first; without one, only a pattern that matches several images needs --yes.'
  static override examples = [
    '<%= config.bin %> <%= command.id %> app:1.2',
    '<%= config.bin %> <%= command.id %> localhost:5001/app:1.2',
    '<%= config.bin %> <%= command.id %> team/app --dry-run',
    "<%= config.bin %> <%= command.id %> 'app:old-*' --dry-run",
  ]
  static override args = {
    name: string({ required: true, description: 'image, repository, digest or pattern to remove' }),
  }
  static override strict = false
  static override flags = { json: jsonFlag, 'dry-run': dryRunFlag, yes: yesFlag }

  override async run(): Promise<void> {
    const { argv, flags } = await this.parse(RegistryRm)
    const { openRegistryAccess } = await import('../../admin/access.ts')
    const registry = await openRegistryAccess(this.getSurroundings())
    try {
      const { createNotFoundError } = await import('../../admin/names.ts')
      const { removeConfirmed } = await import('../../cli/removal-flow.ts')
      const removal = await removeConfirmed({
        info: (text) => this.info(text),
        given: argv as string[],
        store: registry,
        isPushed: true,
        yes: flags.yes,
        dryRun: flags['dry-run'],
      })
      if (removal === undefined) return
      const { missing, notes: _notes, stored, ...report } = removal
      if (flags.json) this.printJson(report)
      // The error below reports the names that were not found.
      else if (missing.length === 0 || report.images.length + report.blobs > 0) {
        this.report(renderRemoval(report, flags['dry-run'], stored))
        const later = flags['dry-run'] || report.images.length === 0 ? undefined : await describeUnfreed(registry)
        if (later !== undefined) this.report(later)
      }
      if (missing.length > 0)
        throw createNotFoundError('Not in the registry', missing, stored, {
          rm: 'mirror registry rm',
          ls: 'mirror registry ls',
        })
    } finally {
      await registry.close()
    }
  }
}
