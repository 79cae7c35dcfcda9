import { once } from 'node:events'
import { connect as connectHttp2, type IncomingHttpHeaders } from 'node:http2'
import { connect } from 'node:net'
import type { CommandResult } from '../../lib/process.ts'
import { containerdVersionIn } from '../address.ts'
import { registrySection } from './config-toml.ts'

/** Runs programs in the nodes of a cluster. */
interface NodePrograms {
  /** Runs a program in a node; undefined when there is no way to. */
  exec(node: string, args: readonly string[], input?: string, timeoutMs?: number): Promise<CommandResult | undefined>
}

/** The parts of Kubernetes' container runtime interface that images are pulled by, over the runtime's socket. */
interface Cri {
  /** Throws a CriError with what the runtime says, or what the system says of a socket that cannot be reached. */
  pullImage(image: string): Promise<void>
  /** No failure when it is gone already. Throws as `pullImage`. */
  removeImage(image: string): Promise<void>
  /** What it tells of itself, texts by name: `config` is JSON. Throws as `pullImage`. */
  info(): Promise<Readonly<Record<string, string>>>
}

/** A call that the runtime refused. */
export class CriError extends Error {
  override name = 'CriError'
  /** A gRPC status. https://grpc.github.io/grpc/core/md_doc_statuscodes.html */
  readonly status: number

  constructor(status: number, message: string) {
    super(message)
    this.status = status
  }
}

/** The status of a runtime that does not speak this interface. */
export const criUnimplemented = 12

/** CRI v1: gRPC, with the two messages written by hand. https://github.com/kubernetes/cri-api */
export function criClient(socket: string, timeoutMs: number): Cri {
  const call = async (method: string, image: string) =>
    void (await unaryCall(socket, `/runtime.v1.ImageService/${method}`, imageSpec(image), timeoutMs))
  return {
    pullImage: (image) => call('PullImage', image),
    removeImage: (image) => call('RemoveImage', image),
    async info() {
      // StatusRequest.verbose; StatusResponse.info is a map, an entry each.
      const answer = await unaryCall(socket, '/runtime.v1.RuntimeService/Status', Buffer.from([0x08, 1]), timeoutMs)
      const entries = fieldsOf(answer).filter(({ number }) => number === 2)
      return Object.fromEntries(
        entries.map(({ value }) => {
          const entry = fieldsOf(value)
          const textOf = (number: number) => (entry.find((one) => one.number === number)?.value ?? '').toString()
          return [textOf(1), textOf(2)]
        }),
      )
    },
  }
}

/** An ImageSpec, whose first field is the image's name, as the first field of a request. */
function imageSpec(image: string): Buffer {
  return field(1, field(1, Buffer.from(image)))
}

/** A length-delimited protobuf field. https://protobuf.dev/programming-guides/encoding/ */
function field(number: number, value: Buffer): Buffer {
  return Buffer.concat([varint((number << 3) | 2), varint(value.length), value])
}

function varint(value: number): Buffer {
  const bytes: number[] = []
  let rest = value
  for (; rest > 0x7f; rest >>>= 7) bytes.push((rest & 0x7f) | 0x80)
  return Buffer.from([...bytes, rest])
}

/** The length-delimited fields of a message; a number is passed over. */
function fieldsOf(message: Buffer): { readonly number: number; readonly value: Buffer }[] {
  const fields: { number: number; value: Buffer }[] = []
  let at = 0
  const next = () => {
    let value = 0
    for (let shift = 0; at < message.length; shift += 7) {
      const byte = message[at++]!
      value += (byte & 0x7f) * 2 ** shift
      if (byte < 0x80) break
    }
    return value
  }
  while (at < message.length) {
    const tag = next()
    const kind = tag % 8
    if (kind === 0) next()
    else if (kind === 2) {
      const length = next()
      fields.push({ number: Math.floor(tag / 8), value: message.subarray(at, at + length) })
      at += length
    } else at += kind === 1 ? 8 : 4
  }
  return fields
}

/** One gRPC call; resolves to the message of its answer. https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md */
async function unaryCall(path: string, method: string, message: Buffer, timeoutMs: number): Promise<Buffer> {
  const socket = connect(path)
  // Afterwards a session would only say that its stream was cancelled.
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
    stream.setTimeout(timeoutMs, () => reject(new CriError(4, `no answer within ${timeoutMs / 1000} s`)))
    stream.on('error', reject)
    let status: IncomingHttpHeaders = {}
    // A failure without a body has its status in the head.
    stream.on('response', (headers) => (status = headers))
    stream.on('trailers', (trailers) => (status = trailers))
    stream.on('end', () => {
      const code = Number(status['grpc-status'] ?? 2)
      // Before the message: a flag for compression, which nobody asked for, and its length.
      if (code === 0) resolve(Buffer.concat(chunks).subarray(5))
      else reject(new CriError(code, messageOf(status) ?? `status ${code}`))
    })
    stream.on('data', (chunk: Buffer) => chunks.push(chunk))
    stream.end(Buffer.concat([head, message]))
  }).finally(() => session.destroy())
}

/** What went wrong, in the runtime's words: percent-encoded, unless somebody forgot. */
function messageOf(status: IncomingHttpHeaders): string | undefined {
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
 * Pulls an image in a node as its kubelet would, and removes it: undefined when it came, else what was said. Nodes without
 * crictl pull by ctr, which has to be told the folder that their containerd looks at.
 */
export async function pullInNode(nodes: NodePrograms, node: string, image: string): Promise<string | undefined> {
  const hasCrictl = (await nodes.exec(node, ['sh', '-c', 'command -v crictl']))?.exitCode === 0
  const config = hasCrictl ? [] : (await configPaths(nodes, node)).slice(0, 1)
  const hosts = config.flatMap((path) => ['--hosts-dir', path])
  const ctr = ['ctr', '--namespace', 'k8s.io', 'images']
  const pull = hasCrictl ? ['crictl', 'pull', image] : [...ctr, 'pull', ...hosts, image]
  const result = await nodes.exec(node, pull, undefined, pullTimeoutMs)
  await nodes.exec(node, hasCrictl ? ['crictl', 'rmi', image] : [...ctr, 'rm', image])
  if (result?.exitCode === 0) return undefined
  return `${node}: ${result?.stderr.trim() || result?.stdout.trim() || 'the pull did not end'}`
}

/** Where the containerd of a node looks for hosts.toml. */
export async function configPaths(nodes: NodePrograms, node: string): Promise<readonly string[]> {
  const dump = await nodes.exec(node, ['containerd', 'config', 'dump'])
  if (dump?.exitCode !== 0) return []
  const containerd = await nodeContainerd(nodes, node)
  return registrySection(`containerd config dump in ${node}`, dump.stdout, { containerd }).configPaths
}

/** The version of a node's containerd; undefined when it does not say. */
export async function nodeContainerd(nodes: NodePrograms, node: string): Promise<string | undefined> {
  const result = await nodes.exec(node, ['containerd', '--version'])
  return result?.exitCode === 0 ? containerdVersionIn(result.stdout) : undefined
}

export const pullTimeoutMs = 120_000

/**
 * Pulls an image by the crictl of a node, as its kubelet would, and removes it again. See ConfigTarget.pull; `missing`: what to
 * say when there is no way to the node.
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
  return { failed: `${result.stdout}${result.stderr}`.trim() || 'the pull did not end' }
}
