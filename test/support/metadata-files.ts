import { readdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'

/** Names folders and files of a store that hold no metadata. */
const others = new Set(['blobs', 'tmp', 'quarantine', 'lock', 'clean', 'unchecked', 'running.json'])
/** Matches the folder of records without a checksum: only damage of their syntax can be noticed. */
const withoutChecksum = /\/repositories\/[^/]+$/

/** Lists the files below the data folder of a mirror that hold metadata, of the cache or the registry or both. */
export async function findMetadataFiles(home: string, part: 'cache' | 'registry' | '' = ''): Promise<string[]> {
  return findFiles(join(home, 'data', part))
}

async function findFiles(folder: string): Promise<string[]> {
  const found: string[] = []
  for (const entry of await readdir(folder, { withFileTypes: true })) {
    if (others.has(entry.name) || entry.name.startsWith('.')) continue
    const path = join(folder, entry.name)
    if (entry.isDirectory()) found.push(...(await findFiles(path)))
    else if (entry.isFile()) found.push(path)
  }
  return found
}

/** Flips one random bit of a random byte of the file. Returns what it changed, for the message of an assertion. */
export async function flipBit(path: string): Promise<string> {
  const bytes = await readFile(path)
  const isVisible = (byte: number) => !withoutChecksum.test(path) || '{}'.includes(String.fromCodePoint(byte))
  const places = Array.from(bytes.keys()).filter((at) => isVisible(bytes[at]!))
  const at = places[Math.floor(Math.random() * places.length)]!
  const before = bytes[at]!
  const toText = (byte: number) => String.fromCodePoint(byte).toLowerCase()
  // The case of a letter means nothing in a checksum.
  do bytes[at] = before ^ (1 << Math.floor(Math.random() * 8))
  while (toText(bytes[at]) === toText(before))
  await writeFile(path, bytes)
  return `byte ${at} of ${bytes.length} of ${path}: ${before} became ${bytes[at]}`
}
