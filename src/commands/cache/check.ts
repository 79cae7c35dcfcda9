import { string } from '@oclif/core/args'
import type { TagCheckReport } from '../../admin/api.ts'
import { BaseCommand } from '../../cli/base-command.ts'
import { jsonFlag } from '../../cli/flags.ts'
import { exitCode } from '../../lib/errors.ts'

export default class CacheCheck extends BaseCommand {
  static override summary = 'Ask upstreams whether cached tags are up to date'
  static override description =
    'IMAGE is an image or a repository (all of its tags), as you write it for docker. Sends one HEAD for each tag and fetches ' +
    'nothing: the next pull fetches a newer image. Exit code 5 when an upstream cannot tell.'
  static override examples = [
    '<%= config.bin %> <%= command.id %> nginx:1.27',
    '<%= config.bin %> <%= command.id %> alpine ghcr.io/owner/app --json',
  ]
  static override args = { image: string({ required: true, description: 'image or repository to check' }) }
  static override strict = false
  static override flags = { json: jsonFlag }

  override async run(): Promise<void> {
    const { argv, flags } = await this.parse(CacheCheck)
    const { openCacheAccess } = await import('../../admin/access.ts')
    const cache = await openCacheAccess(this.getSurroundings())
    try {
      const { createNotFoundError, parseUserNames } = await import('../../admin/names.ts')
      const images = await cache.list()
      const parsed = parseUserNames(argv as string[], { ...cache.naming, images })
      const findTags = (name: string) =>
        images.flatMap((image) => (image.name === name || image.name.startsWith(`${name}:`) ? [image.name] : []))
      const missing = parsed.filter(({ name }) => findTags(name).length === 0)
      const commands = { rm: 'mirror cache check', ls: 'mirror cache ls' }
      if (missing.length > 0) throw createNotFoundError('Not cached', missing, images, commands)
      const reports: TagCheckReport[] = []
      for (const image of new Set(parsed.flatMap(({ name }) => findTags(name))))
        reports.push(await cache.checkTag({ image }))
      if (flags.json) this.printJson(reports)
      else for (const report of reports) this.print(describeCheck(report))
      if (reports.some(({ error }) => error !== undefined)) process.exitCode = exitCode.checkFailed
    } finally {
      await cache.close()
    }
  }
}

function describeCheck({ image, digest, changed, error }: TagCheckReport): string {
  if (error !== undefined) return `${image}: not known: ${error}`
  return changed ? `${image}: newer at the upstream: ${digest}` : `${image}: up to date`
}
