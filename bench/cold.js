// What is not held yet.
import { cpuSeconds, median } from './accounting.js'
import { touchMemory } from './content.js'
import { blobUrl } from './servers.js'
import { drain } from './sink.js'

/**
 * A blob of 60 MB that nobody has asked for, by one client: medians of alternating rounds.
 * @param {Record<string, import('./servers.js').Running>} subjects @param {string} folder on the disk that they write to
 */
export async function measureCold(subjects, blobs, folder) {
  const samples = Object.fromEntries(Object.keys(subjects).map((name) => [name, []]))
  for (const [round, blob] of blobs.entries()) {
    const inTurn = Object.entries(subjects)
    // Neither always finds what the other has just left.
    for (const [name, subject] of round % 2 === 0 ? inTurn : inTurn.toReversed()) {
      // A virtual machine soon gives back what lies idle, and to get 60 MB anew can take three times as long as the pull.
      touchMemory(folder, 20 * blob.size)
      const before = cpuSeconds(subject.pid)
      const seconds = await drain([blobUrl(subject, blob)])
      samples[name].push({
        bytes: blob.size / seconds,
        cpuPerGB: ((cpuSeconds(subject.pid) - before) / blob.size) * 1e9,
      })
      // What goes on behind is not the next one's to pay for.
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
