import type { VerifyProgress } from '../../admin/api.ts'
import { BaseCommand } from '../../cli/base-command.ts'
import { dryRunFlag, jsonFlag } from '../../cli/flags.ts'
import { createProgressBar } from '../../cli/terminal.ts'
import { exitCode } from '../../lib/errors.ts'
import { formatBytes } from '../../lib/units.ts'

export default class CacheVerify extends BaseCommand {
  static override summary = 'Check every byte of the cache against its digest'
  static override description =
    'Moves damaged blobs aside, so that they are fetched again on the next request. Exit code 5 when any blob was damaged.'
  static override examples = [
    '<%= config.bin %> <%= command.id %>',
    '<%= config.bin %> <%= command.id %> --dry-run --json',
  ]
  static override flags = { json: jsonFlag, 'dry-run': dryRunFlag }

  override async run(): Promise<void> {
    const { flags } = await this.parse(CacheVerify)
    const { openCacheAccess } = await import('../../admin/access.ts')
    const cache = await openCacheAccess(this.getSurroundings())
    const bar = createProgressBar(process.stderr)
    let last: VerifyProgress | undefined
    try {
      for await (const progress of cache.verify({ quarantine: !flags['dry-run'] }, this.interrupted)) {
        last = progress
        const { checkedBytes, totalBytes } = progress
        bar.update(checkedBytes, totalBytes, `${formatBytes(checkedBytes)} of ${formatBytes(totalBytes)}`)
      }
    } finally {
      bar.end()
      await cache.close()
    }
    if (last?.done !== true) throw new Error('The mirror stopped before all blobs were checked.')
    const { checked, checkedBytes, damaged } = last
    if (flags.json) this.printJson({ checked, checkedBytes, damaged })
    else {
      const found = damaged.length === 0 ? 'all intact' : `${damaged.length} damaged`
      this.print(`${checked} blobs checked, ${formatBytes(checkedBytes)}: ${found}`)
      for (const digest of damaged) this.print(`  ${digest}${flags['dry-run'] ? '' : ' (moved aside)'}`)
    }
    if (damaged.length > 0) process.exitCode = exitCode.checkFailed
  }
}
