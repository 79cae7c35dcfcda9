import { string } from '@oclif/core/args'
import { integer } from '@oclif/core/flags'
import type { RegistryAccess } from '../../admin/access.ts'
import type { RemovalReport } from '../../admin/api.ts'
import { BaseCommand } from '../../cli/base-command.ts'
import { dryRunFlag, durationFlag, jsonFlag, yesFlag } from '../../cli/flags.ts'
import { describeUnfreed, renderRemoval } from '../../cli/render/table.ts'
import { exitCode, findNearest, MirrorError } from '../../lib/errors.ts'

export default class RegistryPrune extends BaseCommand {
  static override summary = 'Remove old tags and the images that only they reference'
  static override description =
    'For tools that push a new tag with every build. A tag is removed when it is older than --older-than and not among the ' +
    'newest --keep tags of its repository. On a terminal, it asks first.'
  static override examples = [
    '<%= config.bin %> <%= command.id %> --older-than 14d --keep 5',
    '<%= config.bin %> <%= command.id %> team/app --older-than 2h --keep 1 --dry-run',
  ]
  static override args = { repository: string({ description: 'repository to prune (default: all)' }) }
  static override flags = {
    json: jsonFlag,
    'dry-run': dryRunFlag,
    yes: yesFlag,
    'older-than': durationFlag({
      description: 'remove tags that were pushed longer ago',
      default: 14 * 24 * 3_600_000,
      defaultHelp: () => Promise.resolve('14d'),
    }),
    keep: integer({
      description: 'newest tags to keep in each repository, whatever their age',
      helpValue: 'N',
      min: 0,
      default: 5,
    }),
  }

  override async run(): Promise<void> {
    const { args, flags } = await this.parse(RegistryPrune)
    const { openRegistryAccess } = await import('../../admin/access.ts')
    const registry = await openRegistryAccess(this.getSurroundings())
    try {
      const { keep, 'dry-run': dryRun } = flags
      const selection =
        args.repository === undefined ? {} : { repository: await this.parseRepositoryName(args.repository, registry) }
      const prune = (dry: boolean) =>
        registry.prune({ olderThan: flags['older-than'], keep, ...selection, dryRun: dry })
      if (!flags.yes && !dryRun && !(await this.agreeToRemoval(() => prune(true)))) return
      const removal = await prune(dryRun)
      if (flags.json) this.printJson(removal)
      // The error below says that there is no such repository.
      else if (removal.unknown.length === 0) {
        this.report(renderRemoval(removal, dryRun))
        const later = dryRun || removal.images.length === 0 ? undefined : await describeUnfreed(registry)
        if (later !== undefined) this.report(later)
      }
      if (removal.unknown.length > 0) throw await this.createUnknownRepositoryError(removal.unknown, registry)
    } finally {
      await registry.close()
    }
  }

  private async agreeToRemoval(preview: () => Promise<RemovalReport>): Promise<boolean> {
    const { agreeToRemoval } = await import('../../cli/removal-flow.ts')
    return agreeToRemoval({ preview, isPushed: true, mustAgree: false, info: (text) => this.info(text) })
  }

  private async createUnknownRepositoryError(unknown: string[], registry: RegistryAccess): Promise<MirrorError> {
    const { splitImage } = await import('../../admin/patterns.ts')
    const known = new Set((await registry.list()).map(({ name }) => splitImage(name).repository))
    const meant = findNearest(unknown[0]!, [...known])
    return new MirrorError(
      `There is no repository ${unknown.join(', ')}.${meant === undefined ? '' : ` Did you mean ${meant}?`}`,
      { exit: exitCode.usage, hints: ['mirror registry ls'] },
    )
  }

  /** Parses the name of a repository that may be typed with the registry's address. */
  private async parseRepositoryName(given: string, { naming }: RegistryAccess): Promise<string> {
    const { parseUserNames } = await import('../../admin/names.ts')
    return parseUserNames([given], { ...naming, images: [] })[0]!.name
  }
}
