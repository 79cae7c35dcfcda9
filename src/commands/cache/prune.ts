import { BaseCommand } from '../../cli/base-command.ts'
import { dryRunFlag, jsonFlag } from '../../cli/flags.ts'
import { renderRemoval } from '../../cli/render/table.ts'

export default class CachePrune extends BaseCommand {
  static override summary = 'Evict images until the cache is within its limits'
  static override description =
    'Evicts the least recently pulled images first. A running mirror does so by itself. The limits are cache.maxSize, maxAge ' +
    'and minFree.'
  static override examples = [
    '<%= config.bin %> <%= command.id %> --dry-run',
    '<%= config.bin %> <%= command.id %> --json',
  ]
  static override flags = { json: jsonFlag, 'dry-run': dryRunFlag }

  override async run(): Promise<void> {
    const { flags } = await this.parse(CachePrune)
    const { openCacheAccess } = await import('../../admin/access.ts')
    const cache = await openCacheAccess(this.getSurroundings())
    try {
      const removal = await cache.prune({ dryRun: flags['dry-run'] })
      if (flags.json) return this.printJson(removal)
      this.print(renderRemoval(removal, flags['dry-run']))
    } finally {
      await cache.close()
    }
  }
}
