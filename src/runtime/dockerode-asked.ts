import { MirrorError, codeOf, exitCode } from '../lib/errors.ts'
import { DockerError } from './container-engine.ts'

/** What the engine refuses, as a DockerError; an engine that is gone, as a MirrorError (exit 4); anything else as it is. */
export async function asked<T>(ask: Promise<T>): Promise<T> {
  try {
    return await ask
  } catch (error) {
    throw toDockerError(error)
  }
}

/** The same where what is asked for need not be there: undefined then. */
export async function askedIfThere<T>(ask: Promise<T>): Promise<T | undefined> {
  try {
    return await asked(ask)
  } catch (error) {
    if (error instanceof DockerError && error.status === 404) return undefined
    throw error
  }
}

/** The same for an answer that comes bit by bit. */
export async function* askedFor<T>(answer: AsyncIterable<T>): AsyncGenerator<T> {
  try {
    yield* answer
  } catch (error) {
    throw toDockerError(error)
  }
}

function toDockerError(error: unknown): unknown {
  if (!(error instanceof Error)) return error
  if (lost.has(codeOf(error) ?? ''))
    return new MirrorError(`The Docker engine has stopped answering: ${error.message}.`, {
      exit: exitCode.missing,
      hints: ['docker info   (says what is wrong)'],
      cause: error,
    })
  if (!('statusCode' in error) || typeof error.statusCode !== 'number') return error
  const said = 'json' in error ? messageOf(error.json) : undefined
  const message = (said ?? error.message).trim().replace(/\.$/, '')
  // podman says 500 where Docker says that something is in conflict.
  const status = /already (in use|exists|used)|container state improper/.test(message) ? 409 : error.statusCode
  return new DockerError(status, message, { cause: error })
}

const lost = new Set(['ECONNREFUSED', 'ECONNRESET', 'ENOENT', 'EPIPE', 'ETIMEDOUT', 'EHOSTUNREACH', 'ENETUNREACH'])

function messageOf(value: unknown): string | undefined {
  return typeof value === 'object' && value !== null && 'message' in value && typeof value.message === 'string'
    ? value.message
    : undefined
}
