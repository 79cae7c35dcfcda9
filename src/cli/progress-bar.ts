import { columnsOf } from './terminal.ts'

/** A line that shows how far long work is. On anything but a terminal it shows nothing. */
export interface ProgressBar {
  update(done: number, total: number, label: string): void
  /** Takes the line away. */
  end(): void
}

const width = 24

export function createProgressBar(
  stream: Pick<NodeJS.WriteStream, 'write' | 'isTTY'> & { columns?: number },
): ProgressBar {
  if (!stream.isTTY) return { update() {}, end() {} }
  return {
    update(done, total, label) {
      const share = total === 0 ? 1 : Math.min(1, done / total)
      const filled = Math.round(share * width)
      const line = `${'█'.repeat(filled)}${'░'.repeat(width - filled)} ${Math.floor(share * 100)} % ${label}`
      stream.write(`\r${line.slice(0, (columnsOf(stream) ?? 80) - 1)}\x1b[K`)
    },
    end: () => void stream.write('\r\x1b[K'),
  }
}
