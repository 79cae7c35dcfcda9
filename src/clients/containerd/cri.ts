import { once } from 'node:events'
import { connect as connectHttp2, type IncomingHttpHeaders } from 'node:http2'
import { connect } from 'node:net'
import type { CommandResult } from '../../lib/process.ts'
import { parseContainerdVersion } from '../address.ts'
import { readRegistrySection } from './config-toml.ts'

/** Runs programs in the nodes of a cluster. */
interface NodePrograms {
  /** Runs a program in a node; undefined if it cannot run there. */
  exec(node: string, args: readonly string[], input?: string, timeoutMs?: number): Promise<CommandResult | undefined>
}

/** Reports that the runtime refused a call. */
export class CriError extends Error {
  override name = 'CriError'
  /** Holds the gRPC status code. https://grpc.github.io/grpc/core/md_doc_statuscodes.html */
  readonly status: number

  constructor(status: number, message: string) {
    super(message)
    this.status = status
  }
}

/** Holds the gRPC status of a runtime without CRI. */
export const criUnimplemented = 12

/**
 * Creates a client for the image calls of Kubernetes' Container Runtime Interface (CRI) v1, over gRPC at the runtime's socket. Its
 * few messages are encoded by hand. https://github.com/kubernetes/cri-api
 */
export function createCriClient(socket: string, timeoutMs: number) {
  const call = async (method: string, image: string) =>
    void (await callUnary(socket, `/runtime.v1.ImageService/${method}`, encodeImageSpec(image), timeoutMs))
  return {
    /** Throws a CriError with the runtime's message, or the system error of a socket that cannot be reached. */
    pullImage: (image: string) => call('PullImage', image),
    /** Succeeds for an image that does not exist. Throws like `pullImage`. */
    removeImage: (image: string) => call('RemoveImage', image),
    /** Returns the runtime's info, texts by name: `config` is JSON. Throws like `pullImage`. */
    async getInfo(): Promise<Readonly<Record<string, string>>> {
      // Set StatusRequest.verbose. StatusResponse.info is a map: each entry is a field 2.
      const response = await callUnary(socket, '/runtime.v1.RuntimeService/Status', Buffer.from([0x08, 1]), timeoutMs)
      const entries = decodeFields(response).filter(({ number }) => number === 2)
      return Object.fromEntries(
        entries.map(({ value }) => {
          const entry = decodeFields(value)
          const getText = (number: number) => (entry.find((one) => one.number === number)?.value ?? '').toString()
          return [getText(1), getText(2)]
        }),
      )
    },
  }
}

/** Encodes a request whose first field is an ImageSpec, whose first field is the image's name. */
function encodeImageSpec(image: string): Buffer {
  return encodeField(1, encodeField(1, Buffer.from(image)))
}

/** Encodes a length-delimited protobuf field. https://protobuf.dev/programming-guides/encoding/ */
function encodeField(number: number, value: Buffer): Buffer {
  return Buffer.concat([encodeVarint((number << 3) | 2), encodeVarint(value.length), value])
}

function encodeVarint(value: number): Buffer {
  const bytes: number[] = []
  let rest = value
  for (; rest > 0x7f; rest >>>= 7) bytes.push((rest & 0x7f) | 0x80)
  return Buffer.from([...bytes, rest])
}

/** Decodes the length-delimited fields of a message and skips numbers. */
function decodeFields(message: Buffer): { readonly number: number; readonly value: Buffer }[] {
  const fields: { number: number; value: Buffer }[] = []
  let at = 0
  const readVarint = () => {
    let value = 0
    for (let shift = 0; at < message.length; shift += 7) {
      const byte = message[at++]!
      value += (byte & 0x7f) * 2 ** shift
      if (byte < 0x80) break
    }
    return value
  }
  while (at < message.length) {
    const tag = readVarint()
    const kind = tag % 8
    if (kind === 0) readVarint()
    else if (kind === 2) {
      const length = readVarint()
      fields.push({ number: Math.floor(tag / 8), value: message.subarray(at, at + length) })
      at += length
    } else at += kind === 1 ? 8 : 4
  }
  return fields
}

/**
 * Makes one unary gRPC call and resolves to the response message. https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
 */
async function callUnary(path: string, method: string, message: Buffer, timeoutMs: number): Promise<Buffer> {
  const socket = connect(path)
  // Connect first to get the system's error: a session only reports that its stream was cancelled.
  await once(socket, 'connect')
  const session = connectHttp2('http://localhost', { createConnection: () => socket })
  const head = Buffer.alloc(5)
  head.writeUInt32BE(message.length, 1)
  const chunks: Buffer[] = []
  return new Promise<Buffer>((resolve, reject) => {
    session.on('error', reject)
    const stream = session.request({
      ':method': 'POST',
      ':path': method,
      'content-type': 'application/grpc',
      te: 'trailers',
    })
    stream.setTimeout(timeoutMs, () => reject(new CriError(4, `no response within ${timeoutMs / 1000} s`)))
    stream.on('error', reject)
    let status: IncomingHttpHeaders = {}
    // Take the status from the headers if a failure has no body.
    stream.on('response', (headers) => (status = headers))
    stream.on('trailers', (trailers) => (status = trailers))
    stream.on('end', () => {
      const code = Number(status['grpc-status'] ?? 2)
      // Skip the compression flag and the length before the message.
      if (code === 0) resolve(Buffer.concat(chunks).subarray(5))
      else reject(new CriError(code, decodeErrorMessage(status) ?? `status ${code}`))
    })
    stream.on('data', (chunk: Buffer) => chunks.push(chunk))
    stream.end(Buffer.concat([head, message]))
  }).finally(() => session.destroy())
}

/** Returns the runtime's error message. It should be percent-encoded; one that is not is taken as it is. */
function decodeErrorMessage(status: IncomingHttpHeaders): string | undefined {
  const message = status['grpc-message']
  if (typeof message !== 'string') return undefined
  try {
    return decodeURIComponent(message)
  } catch (error) {
    if (!(error instanceof URIError)) throw error
    return message
  }
}

/**
 * Pulls an image in a node as its kubelet does, and removes it. Resolves to undefined, or to the error output of a failed pull.
 * Nodes without crictl pull by ctr, with the folder that their containerd reads as `--hosts-dir`.
 */
export async function pullInNode(nodes: NodePrograms, node: string, image: string): Promise<string | undefined> {
  const hasCrictl = (await nodes.exec(node, ['sh', '-c', 'command -v crictl']))?.exitCode === 0
  const config = hasCrictl ? [] : (await getNodeConfigPaths(nodes, node)).slice(0, 1)
  const hosts = config.flatMap((path) => ['--hosts-dir', path])
  const ctr = ['ctr', '--namespace', 'k8s.io', 'images']
  const pull = hasCrictl ? ['crictl', 'pull', image] : [...ctr, 'pull', ...hosts, image]
  const result = await nodes.exec(node, pull, undefined, pullTimeoutMs)
  await nodes.exec(node, hasCrictl ? ['crictl', 'rmi', image] : [...ctr, 'rm', image])
  if (result?.exitCode === 0) return undefined
  return `${node}: ${result?.stderr.trim() || result?.stdout.trim() || 'the pull timed out'}`
}

/** Returns the folders in which the containerd of a node looks for hosts.toml files. */
export async function getNodeConfigPaths(nodes: NodePrograms, node: string): Promise<readonly string[]> {
  const [dump, containerd] = await Promise.all([
    nodes.exec(node, ['containerd', 'config', 'dump']),
    getNodeContainerdVersion(nodes, node),
  ])
  if (dump?.exitCode !== 0) return []
  return readRegistrySection(`containerd config dump in ${node}`, dump.stdout, { containerd }).configPaths
}

/** Returns the version of a node's containerd; undefined if it is unknown. */
export async function getNodeContainerdVersion(nodes: NodePrograms, node: string): Promise<string | undefined> {
  const result = await nodes.exec(node, ['containerd', '--version'])
  return result?.exitCode === 0 ? parseContainerdVersion(result.stdout) : undefined
}

export const pullTimeoutMs = 120_000

/**
 * Pulls an image by the crictl of a node, as its kubelet does, and removes it. See ConfigTarget.pull. `missing`: the failure to
 * report if no program can run in the node.
 */
export async function pullByCrictl(
  crictl: (args: readonly string[]) => Promise<CommandResult | undefined>,
  image: string,
  missing: string,
): Promise<{ readonly failed: string | undefined }> {
  const result = await crictl(['pull', image])
  if (result === undefined) return { failed: missing }
  await crictl(['rmi', image])
  if (result.exitCode === 0) return { failed: undefined }
  return { failed: `${result.stdout}${result.stderr}`.trim() || 'the pull timed out' }
}
