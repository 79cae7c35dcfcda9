import { string } from '@oclif/core/args'
import { BaseCommand } from '../../cli/base-command.ts'
import { dryRunFlag, jsonFlag } from '../../cli/flags.ts'
import { renderRemoval } from '../../cli/render-removal.ts'
import { MirrorError, exitCode } from '../../lib/errors.ts'

export default class CacheRm extends BaseCommand {
  static override summary = 'Drop images, repositories or blobs from the cache'
  static override description =
    'A NAME is an image as `mirror cache ls` prints it, a repository with its registry, or a digest. It can be fetched again.'
  static override examples = [
    '<%= config.bin %> <%= command.id %> docker.io/library/alpine:3.20',
    '<%= config.bin %> <%= command.id %> ghcr.io/owner/app --dry-run',
  ]
  static override args = { name: string({ required: true, description: 'what to drop; several may be named' }) }
  static override strict = false
  static override flags = { json: jsonFlag, 'dry-run': dryRunFlag }

  override async run(): Promise<void> {
    const { argv, flags } = await this.parse(CacheRm)
    const { openCacheAccess } = await import('../../app/cache-access.ts')
    const cache = await openCacheAccess(this.surroundings())
    try {
      const removal = await cache.remove(argv as string[], flags['dry-run'])
      if (flags.json) this.printJson(removal)
      else this.print(renderRemoval(removal, flags['dry-run']))
      if (removal.unknown.length > 0)
        throw new MirrorError(`Not cached: ${removal.unknown.join(', ')}`, {
          exit: exitCode.usage,
          hints: ['mirror cache ls'],
        })
    } finally {
      await cache.close()
    }
  }
}
