import { boolean } from '@oclif/core/flags'
import { BaseCommand } from '../../cli/base-command.ts'
import { dryRunFlag, durationFlag, jsonFlag, yesFlag } from '../../cli/flags.ts'
import { describeUnfreed, renderRemoval } from '../../cli/render/table.ts'

export default class RegistryGc extends BaseCommand {
  static override summary = 'Remove unreferenced content from the registry'
  static override description =
    'A running mirror does so every hour. It is safe during pushes, because content that was pushed or requested within ' +
    '--grace stays; a grace that is shorter than a push can break that push. With --untagged, it asks first on a terminal.'
  static override examples = [
    '<%= config.bin %> <%= command.id %> --dry-run',
    '<%= config.bin %> <%= command.id %> --untagged',
  ]
  static override flags = {
    json: jsonFlag,
    'dry-run': dryRunFlag,
    yes: yesFlag,
    untagged: boolean({ description: 'also remove images without a tag' }),
    grace: durationFlag({
      description: 'keep content that is younger',
      default: 24 * 3_600_000,
      defaultHelp: () => Promise.resolve('24h'),
    }),
  }

  override async run(): Promise<void> {
    const { flags } = await this.parse(RegistryGc)
    const { openRegistryAccess } = await import('../../admin/access.ts')
    const registry = await openRegistryAccess(this.getSurroundings())
    try {
      const { untagged, grace, 'dry-run': dryRun } = flags
      const collect = (dry: boolean) => registry.gc({ untagged, grace, dryRun: dry })
      // Unreferenced content belongs to no image, and a running mirror removes it by itself.
      if (untagged && !flags.yes && !dryRun) {
        const { agreeToRemoval } = await import('../../cli/removal-flow.ts')
        const consent = { isPushed: true, mustAgree: false, info: (text: string) => this.info(text) }
        if (!(await agreeToRemoval({ preview: () => collect(true), ...consent }))) return
      }
      const removal = await collect(dryRun)
      if (flags.json) return this.printJson(removal)
      this.report(renderRemoval(removal, dryRun))
      const later = dryRun || grace === 0 ? undefined : await describeUnfreed(registry)
      if (later !== undefined) this.report(later)
    } finally {
      await registry.close()
    }
  }
}
