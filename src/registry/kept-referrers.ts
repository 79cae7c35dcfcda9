import { largestManifest } from '../oci/content.ts'
import type { BlobStore } from '../store/blob-store.ts'
import type { ReferrersRecord } from '../store/records.ts'
import { ListTurns } from '../lib/body-memory.ts'
import { readReferrersIndex, referrersIndex } from '../oci/lists.ts'
import type { ListAnswer, ManifestAnswer } from '../oci/registry.ts'
import { SingleFlight } from '../lib/async.ts'
import { bytesOf } from '../store/contents.ts'

/** The part of a list that a query asks for, in one page. */
export interface FilteredList extends Pick<ListAnswer, 'bytes' | 'next' | 'filtersApplied'> {
  /** Of the whole list. */
  readonly isEmpty: boolean
}

/** A list of more bytes waits for its turn. */
const smallBytes = 64 * 1024

/**
 * Reads lists of referrers that lie on the disk. Callers that want the same list at the same moment share one reading of it,
 * whoever they are: who may see it is known before. Large ones are read one at a time.
 */
export class KeptReferrers {
  readonly #blobs: Pick<BlobStore, 'read'>
  readonly #pages = new SingleFlight<Uint8Array<ArrayBuffer> | undefined>()
  readonly #lists = new SingleFlight<FilteredList | undefined>()
  readonly #turns = new ListTurns()

  constructor(blobs: Pick<BlobStore, 'read'>) {
    this.#blobs = blobs
  }

  /** The bytes of one page as it was kept; undefined when they are gone. */
  page(page: ReferrersRecord): Promise<Uint8Array<ArrayBuffer> | undefined> {
    return this.#pages.run(keyOf(page), () => this.#inTurn(page.size, () => this.#read(page))).result
  }

  /** All pages of a list as one, with the query's filter applied; undefined when one of them is gone. */
  list(pages: readonly ReferrersRecord[], query: string): Promise<FilteredList | undefined> {
    const size = pages.reduce((sum, page) => sum + page.size, 0)
    const key = JSON.stringify([typeOf(query), ...pages.map(keyOf)])
    const read = async () => {
      const manifests: unknown[] = []
      for (const page of pages) {
        const body = await this.#read(page)
        const index = body && (await readReferrersIndex(body))
        if (!index) return undefined
        for (const entry of index.manifests) manifests.push(entry)
      }
      return filtered(manifests, query)
    }
    return this.#lists.run(key, () => this.#inTurn(size, read)).result
  }

  /** The list in a manifest that was found under a tag, with the query's filter applied. */
  tagged(answer: ManifestAnswer, query: string): Promise<FilteredList> {
    const { digest, size = 0 } = answer
    const read = () => this.#inTurn(size, async () => filtered(await manifestsOf(answer), query))
    if (digest === undefined) return read()
    return this.#lists.run(JSON.stringify([typeOf(query), digest]), read).result as Promise<FilteredList>
  }

  #inTurn<T>(size: number, task: () => Promise<T>): Promise<T> {
    return size <= smallBytes ? task() : this.#turns.run(task)
  }

  async #read({ digest, size }: ReferrersRecord): Promise<Uint8Array<ArrayBuffer> | undefined> {
    const bytes = await this.#blobs.read(digest, largestManifest)
    return bytes?.length === size ? bytes : undefined
  }
}

/** The list that a query asks for, in one page. */
export function filtered(manifests: readonly unknown[], query: string): FilteredList {
  const artifactType = typeOf(query)
  return {
    bytes: referrersIndex(manifests, artifactType),
    next: undefined,
    filtersApplied: artifactType === undefined ? undefined : 'artifactType',
    isEmpty: manifests.length === 0,
  }
}

export async function manifestsOf({ body, stored }: ManifestAnswer): Promise<readonly unknown[]> {
  const index = await (body ? readReferrersIndex(bytesOf(body)) : stored?.use(readReferrersIndex))
  return index?.manifests ?? []
}

function typeOf(query: string): string | undefined {
  return new URLSearchParams(query).get('artifactType') ?? undefined
}

function keyOf({ digest, size }: ReferrersRecord): string {
  return `${digest} ${size}`
}
