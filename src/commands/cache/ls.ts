import { BaseCommand } from '../../cli/base-command.ts'
import { jsonFlag } from '../../cli/flags.ts'
import { getColumns } from '../../cli/terminal.ts'

export default class CacheLs extends BaseCommand {
  static override summary = 'List cached images'
  static override description =
    'Works while the mirror is stopped, too. Content that images share is counted for each of them.'
  static override examples = [
    '<%= config.bin %> <%= command.id %>',
    "<%= config.bin %> <%= command.id %> --json | jq -r '.[].name'",
  ]
  static override flags = { json: jsonFlag }

  override async run(): Promise<void> {
    const { flags } = await this.parse(CacheLs)
    const { openCacheAccess } = await import('../../admin/access.ts')
    const cache = await openCacheAccess(this.getSurroundings())
    try {
      const images = await cache.list()
      if (flags.json) return this.printJson(images)
      if (images.length === 0) return this.info('No images are cached yet.')
      const { renderImages } = await import('../../cli/render/status.ts')
      this.print(renderImages(images, this.getColorsFor(process.stdout), Date.now(), getColumns(process.stdout)))
    } finally {
      await cache.close()
    }
  }
}
