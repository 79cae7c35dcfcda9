import { Readable } from 'node:stream'
import type Dockerode from 'dockerode'
import { DockerError, type DockerImages } from './container-engine.ts'
import { asked, askedFor, askedIfThere } from './dockerode-asked.ts'

/** The images of an engine. */
export function createImages(client: Dockerode): DockerImages {
  return {
    async find(image) {
      const found = await askedIfThere(client.getImage(image).inspect())
      if (found === undefined) return undefined
      return {
        id: found.Id,
        architecture: found.Architecture,
        os: found.Os,
        labels: found.Config.Labels ?? {},
        hasEntrypoint: (found.Config.Entrypoint ?? []).length > 0,
      }
    },
    async pull(image, signal) {
      const stream = await asked(client.pull(image, { abortSignal: signal }))
      await untilDone(stream, signal)
    },
    async import(name, labels, archive) {
      const changes = Object.entries(labels).map(([key, value]) => `LABEL ${key}=${JSON.stringify(value)}`)
      // podman wants the whole name where Docker wants the repository, and takes no notice of the tag.
      const place = { repo: name, tag: name.slice(name.lastIndexOf(':') + 1) }
      const file = Readable.from(archive) as unknown as string
      await untilDone(await asked(client.importImage(file, { ...place, changes })))
    },
    async build(name, labels, archive) {
      // The classic builder: it needs nothing but this one request.
      const options = { t: name, labels: { ...labels }, version: '1' as const, rm: true, forcerm: true }
      await untilDone(await asked(client.buildImage(Readable.from(archive), options)))
    },
    async remove(image) {
      try {
        await askedIfThere(client.getImage(image).remove())
      } catch (error) {
        if (!(error instanceof DockerError) || error.status !== 409) throw error
      }
    },
  }
}

/** The engine tells its progress as a JSON object a line, and a failure as the last of them, with status 200. */
async function untilDone(stream: NodeJS.ReadableStream, signal?: AbortSignal): Promise<void> {
  const stop = () => (stream as Readable).destroy()
  signal?.addEventListener('abort', stop, { once: true })
  let rest = ''
  let failure: string | undefined
  try {
    for await (const chunk of askedFor(stream)) {
      const lines = (rest + String(chunk)).split('\n')
      rest = lines.pop()!
      for (const line of lines) failure = failureIn(line) ?? failure
    }
  } catch (error) {
    signal?.throwIfAborted()
    throw error
  } finally {
    signal?.removeEventListener('abort', stop)
  }
  signal?.throwIfAborted()
  failure = failureIn(rest) ?? failure
  if (failure !== undefined) throw new DockerError(500, failure)
}

function failureIn(line: string): string | undefined {
  return line.includes('"error"') ? (JSON.parse(line) as { error?: string }).error : undefined
}
