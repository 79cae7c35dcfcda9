import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { TestImage } from '../../support/images.ts'

/** Content has the images by repository and tag. */
export type Content = Readonly<Record<string, Readonly<Record<string, TestImage>>>>

/** Writes the folder that upstream.mjs serves: each blob and manifest as a file, and their types and tags in content.json. */
export async function writeContent(folder: string, content: Content): Promise<void> {
  const blobs = join(folder, 'blobs')
  await mkdir(blobs, { recursive: true })
  const tags: Record<string, string> = {}
  const types: Record<string, string> = {}
  const write = (digest: string, bytes: Buffer) => writeFile(join(blobs, digest.replace(':', '-')), bytes)
  for (const [name, tagged] of Object.entries(content)) {
    for (const [tag, image] of Object.entries(tagged)) {
      tags[`${name}:${tag}`] = image.digest
      for (const [digest, bytes] of image.blobs) await write(digest, bytes)
      for (const [digest, { mediaType, bytes }] of image.manifests) {
        types[digest] = mediaType
        await write(digest, bytes)
      }
    }
  }
  await writeFile(join(folder, 'content.json'), JSON.stringify({ tags, types }))
}
