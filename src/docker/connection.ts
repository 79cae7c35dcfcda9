import { type ChildProcessByStdio, spawn } from 'node:child_process'
import type { Socket } from 'node:net'
import { Duplex } from 'node:stream'
import { StringDecoder } from 'node:string_decoder'
import { getErrno, exitCode, MirrorError } from '../lib/errors.ts'
import { ownGroup, signalGroup } from '../lib/process.ts'
import { renderDockerHost, type SshEndpoint } from './endpoint.ts'
import { ExecError } from './engine.ts'

/** Keeps the end of what ssh prints, because the reason follows the banners; characters. */
const maxStderrLength = 2000

/**
 * Connects to a remote Docker engine by the user's own ssh, like the `docker` command. Fails with the output of ssh, as a
 * MirrorError (exit 4). Implements the few methods of a socket that an http.Agent calls.
 * https://github.com/docker/cli/tree/master/cli/connhelper
 */
export class SshConnection extends Duplex {
  readonly #child: ChildProcessByStdio<Socket, Socket, Socket>
  readonly #endpoint: SshEndpoint
  #stderr = ''
  #hasAnswered = false
  #idle: NodeJS.Timeout | undefined

  constructor(endpoint: SshEndpoint, env: NodeJS.ProcessEnv = process.env) {
    super()
    this.#endpoint = endpoint
    this.#child = spawn('ssh', createSshArguments(endpoint), {
      env,
      stdio: 'pipe',
      // Keeps Ctrl-C from ssh: the interrupted command cleans up over this very connection.
      ...ownGroup,
    }) as ChildProcessByStdio<Socket, Socket, Socket>
    const { stdin, stdout, stderr } = this.#child
    stdout.on('data', (chunk: Buffer) => {
      this.#hasAnswered = true
      if (!this.push(chunk)) stdout.pause()
    })
    stderr
      .setEncoding('utf8')
      .on('data', (text: string) => (this.#stderr = (this.#stderr + text).slice(-maxStderrLength)))
    // Ignores the error, because the exit code tells why ssh ended.
    stdin.on('error', () => {})
    this.#child.once('error', (error) => this.destroy(this.#createError(error)))
    this.#child.once('close', (code) => this.#end(code))
  }

  override _read(): void {
    this.#child.stdout.resume()
  }

  override _write(chunk: Buffer, _encoding: BufferEncoding, done: () => void): void {
    this.#child.stdin.write(chunk, () => done())
  }

  override _final(done: () => void): void {
    this.#child.stdin.end(() => done())
  }

  override _destroy(error: Error | null, done: (error: Error | null) => void): void {
    clearTimeout(this.#idle)
    const { stdin, stdout, stderr } = this.#child
    for (const stream of [stdin, stdout, stderr]) stream.destroy()
    const { pid, exitCode, signalCode } = this.#child
    // Ends a ProxyCommand as well.
    if (pid !== undefined && exitCode === null && signalCode === null) signalGroup(pid, 'SIGTERM')
    done(error)
  }

  ref(): this {
    return this.#forEachStream((part) => part.ref())
  }

  unref(): this {
    return this.#forEachStream((part) => part.unref())
  }

  setKeepAlive(): this {
    return this
  }

  setNoDelay(): this {
    return this
  }

  /** Emits 'timeout' once after this time, ms, at which an agent ends an unused connection. 0: never. */
  setTimeout(timeoutMs: number): this {
    clearTimeout(this.#idle)
    if (timeoutMs > 0) this.#idle = setTimeout(() => this.emit('timeout'), timeoutMs).unref()
    return this
  }

  #forEachStream(act: (part: { ref(): unknown; unref(): unknown }) => void): this {
    const { stdin, stdout, stderr } = this.#child
    for (const part of [this.#child, stdin, stdout, stderr]) act(part)
    return this
  }

  #end(code: number | null): void {
    if (this.destroyed) return
    if (code === 0 || (code === null && this.#hasAnswered)) this.push(null)
    else this.destroy(this.#createError())
  }

  #createError(cause?: Error): MirrorError {
    const where = renderDockerHost(this.#endpoint)
    if (getErrno(cause) === 'ENOENT')
      return new MirrorError(`The Docker engine at ${where} needs ssh, which is not installed.`, {
        exit: exitCode.missing,
        hints: ['install ssh, or choose another engine: docker context ls'],
        cause,
      })
    const lines = (cause?.message ?? this.#stderr).split('\n').map((line) => line.trim())
    const reason = lines.filter(Boolean).slice(-3).join(' / ').replace(/\.$/, '') || 'ssh ended without output'
    return new MirrorError(`No Docker engine answers at ${where}: ${reason}.`, {
      exit: exitCode.missing,
      hints: [`${['ssh', ...createDestinationArguments(this.#endpoint)].join(' ')} docker info   (shows the reason)`],
      cause,
    })
  }
}

function createSshArguments(endpoint: SshEndpoint): string[] {
  return ['-o', 'ConnectTimeout=30', '-T', ...createDestinationArguments(endpoint), 'docker', 'system', 'dial-stdio']
}

function createDestinationArguments({ host, user, port }: SshEndpoint): string[] {
  return [
    ...(user === undefined ? [] : ['-l', user]),
    ...(port === undefined ? [] : ['-p', String(port)]),
    // Prevents a host from being read as an option.
    '--',
    host,
  ]
}

const headerBytes = 8
const stdout = 1

/**
 * Creates a stream of a program's stdin and stdout from the stream that the engine attaches to it. The engine sends output in
 * frames of 8 bytes (1 stdout or 2 stderr, three zeroes, length) and a payload. Output on stderr becomes the ExecError that ends
 * the stream. https://docs.docker.com/reference/api/engine/version/v1.41/#tag/Container/operation/ContainerAttach
 */
export function createExecStream(attached: Duplex): Duplex {
  let header = Buffer.alloc(0)
  let remaining = 0
  let stderrText = ''

  /** Returns false when the reader cannot keep up. */
  function consume(bytes: Buffer): boolean {
    let readerKeepsUp = true
    while (bytes.length > 0) {
      if (remaining === 0) {
        const missing = headerBytes - header.length
        header = Buffer.concat([header, bytes.subarray(0, missing)])
        bytes = bytes.subarray(missing)
        if (header.length < headerBytes) return readerKeepsUp
        remaining = header.readUInt32BE(4)
      }
      const payload = bytes.subarray(0, remaining)
      bytes = bytes.subarray(remaining)
      remaining -= payload.length
      if (header[0] !== stdout) stderrText += payload.toString()
      else if (payload.length > 0) readerKeepsUp = stream.push(payload)
      if (remaining === 0) header = Buffer.alloc(0)
    }
    return readerKeepsUp
  }

  const stream = new Duplex({
    read: () => void attached.resume(),
    write: (chunk, _encoding, done) => void attached.write(chunk, (error) => done(error)),
    final: (done) => void attached.end(() => done()),
    destroy(error, done) {
      attached.destroy()
      done(error)
    },
  })
  attached.on('data', (bytes: Buffer) => {
    if (!consume(bytes)) attached.pause()
  })
  attached.once('error', (error) => stream.destroy(error))
  const end = () => {
    if (stderrText !== '') stream.destroy(new ExecError(stderrText.trim()))
    else stream.push(null)
  }
  attached.once('end', end)
  attached.once('close', end)
  return stream
}

/**
 * Reads the lines of a container's log from the frames of the engine: 8 bytes (stream, three zeroes, length) and a payload. Ends
 * quietly when the stream is cut because the signal aborts.
 * https://docs.docker.com/reference/api/engine/version/v1.41/#tag/Container/operation/ContainerAttach
 */
export async function* readLogLines(
  stream: AsyncIterable<Buffer | string>,
  signal: AbortSignal,
): AsyncGenerator<string> {
  // Keeps the rest of each stream: frames cut lines anywhere, and stdout and stderr mix between lines only.
  const texts = new Map<number, { decoder: StringDecoder; rest: string }>()
  let bytes = Buffer.alloc(0)
  try {
    for await (const chunk of stream) {
      bytes = Buffer.concat([bytes, Buffer.from(chunk as Buffer)])
      while (bytes.length >= headerBytes && bytes.length >= headerBytes + bytes.readUInt32BE(4)) {
        const end = headerBytes + bytes.readUInt32BE(4)
        const text = texts.get(bytes[0]!) ?? { decoder: new StringDecoder('utf8'), rest: '' }
        texts.set(bytes[0]!, text)
        const lines = (text.rest + text.decoder.write(bytes.subarray(headerBytes, end))).split('\n')
        text.rest = lines.pop()!
        yield* lines
        bytes = bytes.subarray(end)
      }
    }
  } catch (error) {
    if (!signal.aborted) throw error
  }
  for (const { rest } of texts.values()) if (rest !== '') yield rest
}
