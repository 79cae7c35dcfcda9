import type { ImageReport, TagCheckReport } from '../../src/admin/api.ts'
import { change } from '../data/session.ts'
import { cleanText, formatAgo, formatBytes, formatCount } from '../data/format.ts'
import { images, isUnused, now, pushed, status } from '../data/state.ts'
import { askToRemove, run } from '../parts/dialog.tsx'
import { Action, Badge, Command, ImageName } from '../parts/pieces.tsx'
import { Table } from '../parts/table.tsx'
import { FirstSteps } from './overview.tsx'

/** Shows a badge for images that go next when the cache is full. */
const nextRanks = 3

const isOutdated = ({ outdated }: ImageReport) => outdated !== undefined

export function Images() {
  const rows = images.value ?? []
  if (isUnused.value) return <FirstSteps />
  return (
    <Table
      caption="Images"
      rows={rows}
      keyOf={({ name }) => name}
      sort={-5}
      empty={<p>{images.value ? 'No image is cached.' : 'Reading …'}</p>}
      tools={
        <Action
          label="Prune now"
          onClick={() =>
            askToRemove(
              {
                title: 'Prune the cache now?',
                text: (
                  <p>
                    The mirror removes what is beyond the limits of mirror.yaml, as it does by itself from time to time.
                  </p>
                ),
                label: 'Prune',
              },
              '/api/cache/prune',
              {},
            )
          }
        />
      }
      columns={[
        {
          head: 'Image',
          value: ({ name }) => cleanText(name),
          cell: (image) => (
            <>
              <ImageName name={image.name} /> <Badges {...image} />
            </>
          ),
        },
        { head: 'Size', isNumber: true, value: ({ bytes }) => bytes, cell: ({ bytes }) => formatBytes(bytes) },
        {
          head: 'Pulls',
          isNumber: true,
          from: 'medium',
          value: ({ pulls }) => pulls,
          cell: ({ pulls }) => formatCount(pulls),
        },
        {
          head: 'Saved',
          isNumber: true,
          from: 'medium',
          value: ({ bytesSaved }) => bytesSaved ?? 0,
          cell: ({ bytesSaved }) => (bytesSaved === undefined ? '–' : formatBytes(bytesSaved)),
        },
        {
          head: 'Last pull',
          isNumber: true,
          value: ({ lastPulled }) => (lastPulled === undefined ? 0 : Date.parse(lastPulled)),
          cell: ({ lastPulled }) => formatAgo(lastPulled, now.value),
        },
        {
          head: 'Tag age',
          isNumber: true,
          from: 'wide',
          value: ({ movedAt }) => (movedAt === undefined ? 0 : Date.parse(movedAt)),
          cell: ({ movedAt }) => formatAgo(movedAt, now.value).replace(' ago', ''),
        },
        {
          head: 'Checked',
          isNumber: true,
          from: 'wide',
          value: ({ checkedAt }) => (checkedAt === undefined ? 0 : Date.parse(checkedAt)),
          cell: ({ checkedAt }) => formatAgo(checkedAt, now.value),
        },
        {
          head: 'Next out',
          isNumber: true,
          from: 'wide',
          value: ({ evictionRank }) => evictionRank ?? 0,
          cell: ({ evictionRank }) => (evictionRank === undefined ? '–' : formatCount(evictionRank)),
        },
      ]}
      actions={({ name }) => (
        <>
          {!name.includes('@') && (
            <Action label="Check" about={name} busyLabel="Checking …" onClick={() => run(() => checkTag(name))} />
          )}
          <Action
            label="Remove"
            about={name}
            tone="bad"
            onClick={() =>
              askToRemove(
                {
                  title: 'Remove the image from the cache?',
                  text: <p>The next pull fetches it from its registry again. Content that other images use stays.</p>,
                  label: 'Remove',
                },
                '/api/cache/rm',
                { names: [name] },
              )
            }
          />
        </>
      )}
    />
  )
}

function Badges(image: ImageReport) {
  const { outdated, evictionRank } = image
  return (
    <>
      {isOutdated(image) && (
        <Badge tone="warn" hint={`The registry names ${outdated!.digest} now; the next pull fetches it.`}>
          outdated
        </Badge>
      )}
      {evictionRank !== undefined && evictionRank <= nextRanks && isAlmostFull() && (
        <Badge tone="quiet" hint="The mirror removes it first when the cache is full.">
          goes next
        </Badge>
      )}
    </>
  )
}

function isAlmostFull(): boolean {
  const storage = status.value?.storage
  return storage !== undefined && storage.maxBytes > 0 && storage.bytes > storage.maxBytes * 0.7
}

async function checkTag(image: string): Promise<string> {
  const { changed, error } = await change<TagCheckReport>('/api/cache/check', { image })
  if (error !== undefined) throw new Error(`${image}: ${error}`)
  return changed ? `${image} has changed: the next pull fetches it.` : `${image} is up to date.`
}

export function Pushed() {
  const registry = status.value?.endpoints.registry[0]?.replace(/^https?:\/\//, '') ?? 'localhost:5001'
  return (
    <Table
      caption="Pushed images"
      rows={pushed.value ?? []}
      keyOf={({ name }) => name}
      sort={-3}
      empty={
        pushed.value ? (
          <>
            <p>Nothing has been pushed yet. The registry keeps images that you build:</p>
            <Command text={`docker push ${registry}/app:1`} />
          </>
        ) : (
          <p>The registry for pushed images is switched off, or is being read.</p>
        )
      }
      columns={[
        { head: 'Image', value: ({ name }) => cleanText(name), cell: ({ name }) => <ImageName name={name} /> },
        { head: 'Size', isNumber: true, value: ({ bytes }) => bytes, cell: ({ bytes }) => formatBytes(bytes) },
        {
          head: 'Pushed',
          isNumber: true,
          value: ({ pushedAt }) => Date.parse(pushedAt),
          cell: ({ pushedAt }) => formatAgo(pushedAt, now.value),
        },
        {
          head: 'Digest',
          from: 'wide',
          value: ({ digest }) => digest,
          cell: ({ digest }) => <code>{digest.slice(0, 19)}</code>,
        },
      ]}
      actions={({ name }) => (
        <Action
          label="Remove"
          about={name}
          tone="bad"
          onClick={() =>
            askToRemove(
              {
                title: 'Remove the pushed image?',
                text: <p>The mirror has the only copy that it knows of. To have it again, push it again.</p>,
                label: 'Remove',
              },
              '/api/registry/rm',
              { names: [name] },
            )
          }
        />
      )}
    />
  )
}
