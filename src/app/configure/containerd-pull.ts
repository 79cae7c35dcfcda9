import { MirrorError, errnoOf, exitCode, isConnectionFailure } from '../../lib/errors.ts'
import type { RunCommand } from '../../lib/process.ts'
import { CriError, criClient, criUnimplemented } from '../../clients/containerd/cri.ts'

const patienceMs = 120_000

export interface ContainerdAccess {
  readonly runCommand: RunCommand
  readonly socket: string
  /** Where its hosts folders are, for ctr, which has to be told. */
  readonly hostsFolder: string
}

/**
 * Pulls an image as a kubelet would, and removes it again; by ctr where containerd does not speak to kubelets. Resolves to what
 * was said when it failed. Throws a MirrorError (missing) when no containerd answers.
 */
export async function pullByContainerd(
  access: ContainerdAccess,
  image: string,
): Promise<{ readonly failed: string | undefined }> {
  const cri = criClient(access.socket, patienceMs)
  try {
    await cri.pullImage(image)
    await cri.removeImage(image)
    return { failed: undefined }
  } catch (error) {
    if (error instanceof CriError) {
      return error.status === criUnimplemented ? pullByCtr(access, image) : { failed: error.message }
    }
    if (!isConnectionFailure(error)) throw error
    throw unreachable(access.socket, error)
  }
}

async function pullByCtr(
  { runCommand, socket, hostsFolder }: ContainerdAccess,
  image: string,
): Promise<{ readonly failed: string | undefined }> {
  const ctr = (...args: string[]) =>
    runCommand('ctr', ['--address', socket, 'images', ...args], { timeoutMs: patienceMs })
  const pulled = await ctr('pull', '--hosts-dir', hostsFolder, image)
  if (pulled === undefined)
    throw new MirrorError('containerd does not speak to kubelets here, and there is no ctr to pull by instead.', {
      exit: exitCode.missing,
    })
  if (pulled.exitCode !== 0) return { failed: pulled.stderr.trim() || pulled.stdout.trim() }
  await ctr('rm', '--sync', image)
  return { failed: undefined }
}

function unreachable(socket: string, cause: unknown): MirrorError {
  const denied = errnoOf(cause) === 'EACCES' || errnoOf(cause) === 'EPERM'
  return new MirrorError(denied ? `Only root may speak to ${socket}.` : `No containerd answers at ${socket}.`, {
    exit: exitCode.missing,
    hints: denied ? ['sudo mirror configure containerd --check'] : ['sudo systemctl start containerd'],
    cause,
  })
}
