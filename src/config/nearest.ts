/**
 * The candidate that the word was probably meant to be: the same but for case, or at most a third of it (a character of a short
 * one) mistyped; else the only one that begins with it.
 */
export function nearest(word: string, candidates: readonly string[]): string | undefined {
  const lower = word.toLowerCase()
  let best: string | undefined
  let bestDistance = Math.max(1, Math.floor(word.length / 3)) + 1
  for (const candidate of candidates) {
    const distance = editDistance(lower, candidate.toLowerCase())
    // Of a word of one character nothing would be left.
    if (distance < bestDistance && distance < Math.max(word.length, candidate.length)) {
      ;[best, bestDistance] = [candidate, distance]
    }
  }
  if (best !== undefined || lower === '') return best
  const [only, ...others] = candidates.filter((candidate) => candidate.toLowerCase().startsWith(lower))
  return others.length === 0 ? only : undefined
}

/** How many characters to add, drop, change, or swap with the next (the optimal string alignment distance). */
function editDistance(a: string, b: string): number {
  let before: number[] = []
  let row = Array.from({ length: b.length + 1 }, (_, index) => index)
  for (let i = 1; i <= a.length; i++) {
    const next = [i]
    for (let j = 1; j <= b.length; j++) {
      const change = row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1)
      let distance = Math.min(row[j]! + 1, next[j - 1]! + 1, change)
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1])
        distance = Math.min(distance, before[j - 2]! + 1)
      next.push(distance)
    }
    ;[before, row] = [row, next]
  }
  return row[b.length]!
}
