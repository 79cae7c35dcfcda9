// Counts outcomes, and records the ones that must not happen.

const mostKept = 50

export class Ledger {
  /** Counts responses by traffic and outcome. @type {Map<string, Map<string, number>>} */
  counts = new Map()
  /** Lists outcomes that are bugs of the mirror. @type {string[]} */
  findings = []
  findingCount = 0
  bytesChecked = 0
  slowestHealthMs = 0

  count(traffic, result) {
    const results = this.counts.get(traffic) ?? new Map()
    this.counts.set(traffic, results)
    results.set(result, (results.get(result) ?? 0) + 1)
  }

  find(text) {
    this.findingCount += 1
    if (this.findings.length < mostKept) {
      this.findings.push(text)
      process.stdout.write(`FOUND: ${text}\n`)
    }
  }

  total() {
    return [...this.counts.values()].flatMap((results) => [...results.values()]).reduce((sum, count) => sum + count, 0)
  }

  /** Renders one line for each traffic. */
  lines() {
    return [...this.counts].map(([traffic, results]) => {
      const parts = [...results].toSorted(([a], [b]) => (a < b ? -1 : 1)).map(([result, count]) => `${result} ${count}`)
      return `${traffic.padEnd(18)} ${parts.join(', ')}`
    })
  }
}
