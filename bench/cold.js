// Measures pulls of blobs that are not cached yet.
import { cpuSeconds, median } from './accounting.js'
import { touchMemory } from './content.js'
import { blobUrl } from './servers.js'
import { drain } from './sink.js'

/**
 * Measures how one client pulls blobs of 60 MB that are not cached: medians of alternating rounds.
 * @param {Record<string, import('./servers.js').Running>} subjects @param {string} folder on the disk that they write to
 */
export async function measureCold(subjects, blobs, folder) {
  const samples = Object.fromEntries(Object.keys(subjects).map((name) => [name, []]))
  for (const [round, blob] of blobs.entries()) {
    const inTurn = Object.entries(subjects)
    // Alternate the order, so that each subject runs first in half of the rounds.
    for (const [name, subject] of round % 2 === 0 ? inTurn : inTurn.toReversed()) {
      // Touch memory before each pull: a virtual machine returns idle memory, and getting 60 MB back can take three times as long as the pull.
      touchMemory(folder, 20 * blob.size)
      const before = cpuSeconds(subject.pid)
      const seconds = await drain([blobUrl(subject, blob)])
      samples[name].push({
        bytes: blob.size / seconds,
        cpuPerGB: ((cpuSeconds(subject.pid) - before) / blob.size) * 1e9,
      })
      // Wait until background work has ended, so that it does not slow the next subject.
      await new Promise((resolve) => setTimeout(resolve, 500))
    }
  }
  return Object.fromEntries(
    Object.entries(samples).map(([name, all]) => [
      name,
      { value: median(all.map(({ bytes }) => bytes)), cpuPerGB: median(all.map(({ cpuPerGB }) => cpuPerGB)) },
    ]),
  )
}
