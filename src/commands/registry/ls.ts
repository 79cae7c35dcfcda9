import { BaseCommand } from '../../cli/base-command.ts'
import { jsonFlag } from '../../cli/flags.ts'
import { getColumns } from '../../cli/terminal.ts'

export default class RegistryLs extends BaseCommand {
  static override summary = 'List pushed images'
  static override description =
    'Works while the mirror is stopped, too. Content that images share is counted for each of them.'
  static override examples = [
    '<%= config.bin %> <%= command.id %>',
    "<%= config.bin %> <%= command.id %> --json | jq -r '.[].name'",
  ]
  static override flags = { json: jsonFlag }

  override async run(): Promise<void> {
    const { flags } = await this.parse(RegistryLs)
    const { openRegistryAccess } = await import('../../admin/access.ts')
    const registry = await openRegistryAccess(this.getSurroundings())
    try {
      const images = await registry.list()
      const damaged = await registry.listDamaged()
      if (damaged.length > 0) {
        const { describeDamagedRepositories } = await import('../../cli/render/status.ts')
        for (const text of describeDamagedRepositories(damaged)) this.info(`Damaged: ${text}`)
      }
      if (flags.json) return this.printJson(images)
      if (images.length === 0) return damaged.length === 0 ? this.info('The registry holds no images.') : undefined
      const { renderPushedImages } = await import('../../cli/render/status.ts')
      this.print(renderPushedImages(images, this.getColorsFor(process.stdout), Date.now(), getColumns(process.stdout)))
    } finally {
      await registry.close()
    }
  }
}
