import { string } from '@oclif/core/args'
import { BaseCommand } from '../../cli/base-command.ts'
import { dryRunFlag, jsonFlag } from '../../cli/flags.ts'
import { renderRemoval } from '../../cli/render-removal.ts'
import { MirrorError, exitCode } from '../../lib/errors.ts'

export default class RegistryRm extends BaseCommand {
  static override summary = 'Remove pushed images'
  static override description =
    'A NAME is an image as `mirror registry ls` prints it, a repository, or a digest. What only it needs ' +
    'goes too: the disk space of what was pushed or asked for today comes back with a later collection.'
  static override examples = [
    '<%= config.bin %> <%= command.id %> app:1.2',
    '<%= config.bin %> <%= command.id %> team/app --dry-run',
  ]
  static override args = { name: string({ required: true, description: 'what to remove; several may be named' }) }
  static override strict = false
  static override flags = { json: jsonFlag, 'dry-run': dryRunFlag }

  override async run(): Promise<void> {
    const { argv, flags } = await this.parse(RegistryRm)
    const { openRegistryAccess } = await import('../../app/registry-access.ts')
    const registry = await openRegistryAccess(this.surroundings())
    try {
      const removal = await registry.remove(argv as string[], flags['dry-run'])
      if (flags.json) this.printJson(removal)
      else this.print(renderRemoval(removal, flags['dry-run']))
      if (removal.unknown.length > 0)
        throw new MirrorError(`Not in the registry: ${removal.unknown.join(', ')}`, {
          exit: exitCode.usage,
          hints: ['mirror registry ls'],
        })
    } finally {
      await registry.close()
    }
  }
}
