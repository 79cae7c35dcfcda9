import { string } from '@oclif/core/args'
import { BaseCommand } from '../../cli/base-command.ts'
import { dryRunFlag, jsonFlag, yesFlag } from '../../cli/flags.ts'
import { renderRemoval } from '../../cli/render/table.ts'

export default class CacheRm extends BaseCommand {
  static override summary = 'Remove images, repositories or blobs from the cache'
  static override description =
    'NAME is an image, a repository (all of its tags) or a digest, as you write it for docker: nginx:1.27 is ' +
    'docker.io/library/nginx:1.27. Removed content can be fetched again. In a pattern, * and ? match within a part of the ' +
    'path or a tag, and ** matches across slashes; quote it, because shells expand it too. A pattern that matches several ' +
    'images asks first.'
  static override examples = [
    '<%= config.bin %> <%= command.id %> nginx:1.27',
    '<%= config.bin %> <%= command.id %> docker.io/library/alpine',
    '<%= config.bin %> <%= command.id %> ghcr.io/owner/app --dry-run',
    "<%= config.bin %> <%= command.id %> 'docker.io/library/*:old-*' --dry-run",
  ]
  static override args = {
    name: string({ required: true, description: 'image, repository, digest or pattern to remove' }),
  }
  static override strict = false
  static override flags = { json: jsonFlag, 'dry-run': dryRunFlag, yes: yesFlag }

  override async run(): Promise<void> {
    const { argv, flags } = await this.parse(CacheRm)
    const { openCacheAccess } = await import('../../admin/access.ts')
    const cache = await openCacheAccess(this.getSurroundings())
    try {
      const { createNotFoundError } = await import('../../admin/names.ts')
      const { removeConfirmed } = await import('../../cli/removal-flow.ts')
      const removal = await removeConfirmed({
        info: (text) => this.info(text),
        given: argv as string[],
        store: cache,
        yes: flags.yes,
        dryRun: flags['dry-run'],
      })
      if (removal === undefined) return
      const { missing, notes, stored, ...report } = removal
      if (flags.json) this.printJson(report)
      // The error below reports the names that were not found.
      else if (missing.length === 0 || report.images.length + report.blobs > 0)
        this.print(renderRemoval(report, flags['dry-run'], stored))
      for (const note of notes) this.info(note)
      if (missing.length > 0)
        throw createNotFoundError('Not cached', missing, stored, {
          rm: 'mirror cache rm',
          ls: 'mirror cache ls',
        })
    } finally {
      await cache.close()
    }
  }
}
