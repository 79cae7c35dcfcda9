import { readFile, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { type DockerEndpoint, parseEndpoint } from '../../docker/endpoint.ts'
import { errnoOf, exitCode, MirrorError } from '../../lib/errors.ts'
import { writeFileAtomic } from '../../lib/fs.ts'
import { isObject, parseObject } from '../../lib/json.ts'

/** Notes that what is cached is in a volume of the Docker engine, where only a container reaches it. */
export async function noteResting(stateDir: string, volume: string, engine: DockerEndpoint): Promise<void> {
  await writeFileAtomic(fileIn(stateDir), `${JSON.stringify({ volume, engine })}\n`)
}

/** A mirror with its data on this machine's disk is up, or the volume is gone. */
export async function forgetResting(stateDir: string): Promise<void> {
  await rm(fileIn(stateDir), { force: true })
}

/** Whether what is cached is in a volume of the Docker engine. */
export async function isResting(stateDir: string): Promise<boolean> {
  return (await read(stateDir)) !== undefined
}

/** The engine of that volume; undefined where there is none, and where nobody has noted it. */
export async function restingEngine(stateDir: string): Promise<DockerEndpoint | undefined> {
  const engine = parseObject((await read(stateDir)) ?? '')?.['engine']
  return isObject(engine) ? parseEndpoint(engine) : undefined
}

async function read(stateDir: string): Promise<string | undefined> {
  try {
    return await readFile(fileIn(stateDir), 'utf8')
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return undefined
    throw error
  }
}

/** Throws a MirrorError (exit 3) when looking at the disk of this machine would show nothing of what is cached. */
export async function refuseResting(stateDir: string): Promise<void> {
  if (!(await isResting(stateDir))) return
  throw new MirrorError('The mirror is down, and what it holds is in a volume of the Docker engine.', {
    exit: exitCode.notRunning,
    hints: ['mirror up', 'mirror down --volumes   (drops it)'],
  })
}

function fileIn(stateDir: string): string {
  return join(stateDir, 'resting.json')
}
