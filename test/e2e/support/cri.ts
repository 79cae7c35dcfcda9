import { connect as connectHttp2 } from 'node:http2'
import { connect } from 'node:net'

/** Cri is the part of the container runtime interface by which a kubelet pulls images. Debian has no crictl. */
export interface Cri {
  /** Returns the runtime's name and version; throws while it is not ready. */
  version(): Promise<string>
  /** Pulls an image; returns its id. */
  pullImage(image: string): Promise<string>
  removeImage(image: string): Promise<void>
}

/** Creates a client of CRI v1 at the runtime's socket: gRPC with few hand-written messages. https://github.com/kubernetes/cri-api */
export function criClient(socket: string): Cri {
  const call = (method: string, request: Buffer) => unaryCall(socket, `/runtime.v1.${method}`, request)
  return {
    version: async () => readable(await call('RuntimeService/Version', Buffer.alloc(0))),
    pullImage: async (image) => readable(await call('ImageService/PullImage', imageSpec(image))),
    removeImage: async (image) => void (await call('ImageService/RemoveImage', imageSpec(image))),
  }
}

/** Encodes an ImageSpec as the first field of a request. */
function imageSpec(image: string): Buffer {
  return field(1, field(1, Buffer.from(image)))
}

/** Encodes a length-delimited protobuf field. https://protobuf.dev/programming-guides/encoding/ */
function field(number: number, value: Buffer): Buffer {
  return Buffer.concat([varint((number << 3) | 2), varint(value.length), value])
}

function varint(value: number): Buffer {
  const bytes: number[] = []
  for (let rest = value; bytes.length === 0 || rest > 0; rest >>>= 7)
    bytes.push((rest & 0x7f) | (rest > 0x7f ? 0x80 : 0))
  return Buffer.from(bytes)
}

/** Returns the text in a message; the tests need no other part of the answers. */
function readable(message: Buffer): string {
  return message
    .toString('latin1')
    .replaceAll(/[^\x20-\x7e]+/g, ' ')
    .trim()
}

/** Makes a gRPC call; throws the runtime's message for a status other than OK. https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md */
function unaryCall(socket: string, path: string, request: Buffer): Promise<Buffer> {
  const session = connectHttp2('http://localhost', { createConnection: () => connect(socket) })
  const frame = Buffer.alloc(5)
  frame.writeUInt32BE(request.length, 1)
  return new Promise<Buffer>((resolve, reject) => {
    session.on('error', reject)
    const stream = session.request({
      ':method': 'POST',
      ':path': path,
      'content-type': 'application/grpc',
      te: 'trailers',
    })
    let status: Record<string, unknown> = {}
    const chunks: Buffer[] = []
    stream.on('error', reject)
    // Reads the status of the head too: a failure without a message has no trailers.
    stream.on('response', (headers) => (status = headers))
    stream.on('trailers', (trailers) => (status = trailers))
    stream.on('data', (chunk: Buffer) => chunks.push(chunk))
    stream.on('end', () => {
      if (status['grpc-status'] === '0') return resolve(Buffer.concat(chunks).subarray(5))
      reject(
        new Error(`${path}: ${String(status['grpc-status'])} ${decodeURIComponent(String(status['grpc-message']))}`),
      )
    })
    stream.end(Buffer.concat([frame, request]))
  }).finally(() => session.close())
}
