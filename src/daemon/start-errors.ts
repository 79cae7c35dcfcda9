import { readFileSync } from 'node:fs'
import { readdir, readFile, readlink, realpath } from 'node:fs/promises'
import { basename, dirname, join, resolve } from 'node:path'
import { createSecureContext } from 'node:tls'
import type { Config } from '../config/config.ts'
import { getErrno, exitCode, MirrorError } from '../lib/errors.ts'
import { ifVisible } from '../lib/fs.ts'
import { parseObject } from '../lib/json.ts'
import { findPackageRoot } from '../lib/fs.ts'
import { runCommand, type RunCommand, quoteShellWord } from '../lib/process.ts'
import { describeFileFailure, getFileFailureReason, formatFileFailure } from '../lib/system-errors.ts'
import { systemClock } from '../lib/time.ts'
import { checkPasswordFile } from '../server/basic-auth.ts'
import { ListenError } from '../server/listen.ts'
import { createCredentials } from '../upstream/credentials.ts'
import { getDockerConfigPath } from '../upstream/docker-credentials.ts'
import { readProxies } from '../upstream/proxy.ts'
import { getTrustedCertificates } from '../upstream/transport.ts'
import { UpstreamError } from '../upstream/upstream.ts'

type FindHolder = (port: number) => Promise<PortHolder | undefined>

/** Adds to a failed start what the user needs to fix it: the process that holds the port and the flag that moves it, or the folder. */
export async function explainStartFailure(
  error: unknown,
  config: Config,
  find: FindHolder = (port) => findPortHolder(port, { platform: process.platform, runCommand }),
): Promise<unknown> {
  if (error instanceof ListenError)
    return error.errno === 'EADDRINUSE'
      ? createBusyPortError(error, config, find)
      : createUnusableAddressError(error, config)
  if (error instanceof MirrorError) return error
  const failure = describeFileFailure(error)
  if (failure === undefined) return error
  // Stores report their own files, so this file is in the state folder.
  return new MirrorError(
    formatFileFailure(error, failure) ?? `The mirror cannot use its files: ${(error as Error).message}.`,
    {
      hints: [...failure.next, 'MIRROR_HOME=<a folder of yours> mirror up'],
      cause: error,
    },
  )
}

async function createBusyPortError(error: ListenError, config: Config, find: FindHolder): Promise<MirrorError> {
  const holder = await find(error.port)
  const { who, stop } = describeHolder(holder, error.port)
  const { name, key } = findListener(error, config)
  const other = error.port + 1000 <= 65_535 ? error.port + 1000 : error.port - 1000
  return new MirrorError(`Port ${error.port} (${name}) is already in use by ${who}.`, {
    hints: [`mirror up --${name}-port ${other}`, ...stop, `Set another port in mirror.yaml: ${key}`],
    cause: error,
  })
}

function describeHolder(holder: PortHolder | undefined, port: number): { who: string; stop: string[] } {
  if (holder === undefined) return { who: 'another program', stop: getProgramHints(port) }
  const { pid, command, mirror } = holder
  if (mirror === undefined) return { who: `${command} (pid ${pid})`, stop: [`Stop ${command} (pid ${pid})`] }
  if (mirror === 'unknown') return { who: `another mirror (pid ${pid})`, stop: [] }
  if (mirror === 'usual')
    return {
      who: `another mirror (pid ${pid}, without MIRROR_HOME)`,
      stop: ['env -u MIRROR_HOME mirror down   (stops that mirror)'],
    }
  const home = `MIRROR_HOME=${quoteShellWord(mirror.home)}`
  return { who: `another mirror (pid ${pid}, ${home})`, stop: [`${home} mirror down   (stops that mirror)`] }
}

/** Returns the command that shows the program on a port; root sees the programs of all users. */
function getProgramHints(port: number): string[] {
  if (process.platform === 'win32') return [`netstat -ano | findstr :${port}   (shows which program it is)`]
  const command = process.platform === 'linux' ? `ss -ltnp 'sport = :${port}'` : `lsof -nP -iTCP:${port} -sTCP:LISTEN`
  return [`sudo ${command}   (shows which program it is)`]
}

function createUnusableAddressError(error: ListenError, config: Config): MirrorError {
  const { name, key } = findListener(error, config)
  const hint =
    error.errno === 'EACCES'
      ? `mirror up --${name}-port ${error.port + 5000}`
      : `mirror.yaml: ${key}: ["127.0.0.1:${error.port}"]`
  return new MirrorError(error.message, { hints: [hint], cause: error })
}

/** Finds the listener that has an address. */
function findListener({ host, port }: ListenError, config: Config): { name: string; key: string } {
  const names = ['cache', 'registry', 'admin'] as const
  const name = names.find((name) => config[name].listen.some((at) => at.host === host && at.port === port)) ?? 'cache'
  return { name, key: `${name}.listen` }
}

/** Describes the process that listens on a TCP port. */
interface PortHolder {
  pid: number
  /** `nginx`, or a script's name after its interpreter: `node server.js`. */
  command: string
  /** Is undefined for any other program, and where the platform does not tell. */
  mirror?: OtherMirror
}

/** Distinguishes the mirror of a process: of a MIRROR_HOME, or of the usual folders; unknown where its variables cannot be read. */
type OtherMirror = { readonly home: string } | 'usual' | 'unknown'

interface PortHolderOptions {
  platform: string
  runCommand: RunCommand
}

/** Finds the process that listens on a port; undefined where this user cannot see it. */
export async function findPortHolder(port: number, options: PortHolderOptions): Promise<PortHolder | undefined> {
  if (options.platform === 'linux') return findInProc(port)
  if (options.platform === 'darwin') return askLsof(port, options.runCommand)
  return undefined
}

async function findInProc(port: number): Promise<PortHolder | undefined> {
  const inodes = new Set([
    ...(await readListeningInodes('/proc/net/tcp', port)),
    ...(await readListeningInodes('/proc/net/tcp6', port)),
  ])
  if (inodes.size === 0) return undefined
  for (const pid of (await ifVisible(readdir('/proc'))) ?? []) {
    if (!/^\d+$/.test(pid)) continue
    for (const fd of (await ifVisible(readdir(`/proc/${pid}/fd`))) ?? []) {
      const target = await ifVisible(readlink(`/proc/${pid}/fd/${fd}`))
      const inode = /^socket:\[(\d+)\]$/.exec(target ?? '')?.[1]
      if (inode !== undefined && inodes.has(inode)) {
        const mirror = await findOtherMirror(pid)
        return { pid: Number(pid), command: await readCommand(pid), ...(mirror !== undefined && { mirror }) }
      }
    }
  }
  return undefined
}

/**
 * Reads the inodes of listening sockets. proc(5), /proc/net/tcp: `sl local:port remote:port st … inode`, in hexadecimal; state 0A
 * listens.
 */
async function readListeningInodes(table: string, port: number): Promise<string[]> {
  const wanted = port.toString(16).toUpperCase().padStart(4, '0')
  const lines = ((await ifVisible(readFile(table, 'utf8'))) ?? '').split('\n').slice(1)
  return lines.flatMap((line) => {
    const fields = line.trim().split(/\s+/)
    return fields[1]?.endsWith(`:${wanted}`) && fields[3] === '0A' ? [fields[9]!] : []
  })
}

/** Recognizes `node … bin/run.js serve` of a package with this name. */
async function findOtherMirror(pid: string): Promise<OtherMirror | undefined> {
  const [, ...args] = ((await ifVisible(readFile(`/proc/${pid}/cmdline`, 'utf8'))) ?? '').split('\0')
  const at = args.findIndex((argument) => argument !== '' && !argument.startsWith('-'))
  if (at === -1 || !['serve', 'up'].includes(args[at + 1] ?? '')) return undefined
  const cwd = (await ifVisible(readlink(`/proc/${pid}/cwd`))) ?? '/'
  const script = await ifVisible(realpath(resolve(cwd, args[at]!)))
  if (script === undefined) return undefined
  const name = await readPackageName(dirname(dirname(script)))
  if (name === undefined || name !== (await readPackageName(findPackageRoot()))) return undefined
  const variables = (await ifVisible(readFile(`/proc/${pid}/environ`, 'utf8')))?.split('\0')
  if (variables === undefined) return 'unknown'
  const home = variables.find((variable) => variable.startsWith('MIRROR_HOME='))?.slice('MIRROR_HOME='.length)
  return home ? { home: resolve(cwd, home) } : 'usual'
}

async function readPackageName(root: string): Promise<unknown> {
  return parseObject((await ifVisible(readFile(join(root, 'package.json'), 'utf8'))) ?? '')?.['name']
}

/** Reads the program and, for an interpreter, its script; never the other arguments, which may hold secrets. */
async function readCommand(pid: string): Promise<string> {
  const [program = '', ...args] = ((await ifVisible(readFile(`/proc/${pid}/cmdline`, 'utf8'))) ?? '').split('\0')
  const name = basename(program) || 'unknown'
  if (!/^(node|python[\d.]*|ruby|perl|java|bun|deno)$/.test(name)) return name
  const script = args.find((argument) => argument !== '' && !argument.startsWith('-'))
  return script === undefined ? name : `${name} ${basename(script)}`
}

/** Asks lsof. `lsof -F` prints one field a line: `p<pid>`, `c<command>`. */
async function askLsof(port: number, runCommand: RunCommand): Promise<PortHolder | undefined> {
  const result = await runCommand('lsof', ['-nP', `-iTCP:${port}`, '-sTCP:LISTEN', '-Fpc'], { timeoutMs: 5000 })
  if (result?.exitCode !== 0) return undefined
  const field = (letter: string) =>
    result.stdout
      .split('\n')
      .find((line) => line.startsWith(letter))
      ?.slice(1)
  const pid = Number(field('p'))
  return Number.isSafeInteger(pid) && pid > 0 ? { pid, command: field('c') ?? 'unknown' } : undefined
}

/**
 * Checks the files and proxy variables that the server reads at its start, before a running mirror is stopped for it. Throws a
 * MirrorError (exit 2) for the first that cannot be used.
 */
export async function checkNamedFiles(
  { tls, upstreams, registry }: Config,
  env: Readonly<Record<string, string | undefined>>,
): Promise<void> {
  try {
    readTls(tls)
    readAuthorities(upstreams)
    readProxies(env)
    if (registry.enabled && registry.auth) await checkPasswordFile(registry.auth.htpasswd)
  } catch (error) {
    if (!(error instanceof MirrorError)) throw error
    const { exit, hints } = error
    throw new MirrorError(`${error.message.replace(/\.$/, '')}. Nothing was done.`, { exit, hints, cause: error })
  }
}

/** Lists a warning for each upstream that is reached by plain HTTP. */
export function listPlainUpstreams({ upstreams }: Pick<Config, 'upstreams'>): string[] {
  return Object.entries(upstreams).flatMap(([host, { url }]) =>
    url.startsWith('http://') ? [`${host} is reached over plain HTTP (unencrypted): ${url}`] : [],
  )
}

/** Describes each password that upstreams in mirror.yaml name and that cannot be read, a sentence each. */
export async function listUnreadablePasswords(
  { upstreams }: Pick<Config, 'upstreams'>,
  env: Readonly<Record<string, string | undefined>>,
): Promise<string[]> {
  const failures = Object.entries(upstreams).map(async ([host, { credentials: source }]) => {
    // Other sources run programs, or are read only for registries that clients use.
    if (source.from !== 'password-env' && source.from !== 'password-file') return []
    const dockerConfig = getDockerConfigPath(env)
    try {
      await createCredentials({ host, source, dockerConfig, env, runCommand, clock: systemClock }).find()
      return []
    } catch (error) {
      if (!(error instanceof UpstreamError)) throw error
      return [error.message]
    }
  })
  return (await Promise.all(failures)).flat()
}

/** Reads the certificate and key of `tls`. Throws a MirrorError (exit 2) when they do not belong together or cannot be read. */
export function readTls(tls: Config['tls']): { cert: string; key: string } | undefined {
  if (!tls) return undefined
  try {
    const pair = { cert: readFileSync(tls.cert, 'utf8'), key: readFileSync(tls.key, 'utf8') }
    createSecureContext(pair)
    return pair
  } catch (cause) {
    const { path } = describeFileFailure(cause) ?? {}
    const why = path === undefined ? getFileFailureReason(cause) : `${path}: ${getFileFailureReason(cause)}`
    throw new MirrorError(`The certificate and key of "tls" cannot be used: ${why}.`, {
      exit: exitCode.usage,
      hints: ['"tls" in mirror.yaml needs two PEM files that belong together: {cert: ./tls.crt, key: ./tls.key}'],
      cause,
    })
  }
}

/** Reads the CA certificates of the upstreams: PEM text by host. Throws a MirrorError for a file that cannot be used. */
export function readAuthorities(upstreams: Config['upstreams']): Map<string, string | undefined> {
  return new Map(Object.entries(upstreams).map(([host, { ca }]) => [host, ca && readAuthority(host, ca)]))
}

function readAuthority(host: string, path: string): string {
  try {
    const pem = readFileSync(path, 'utf8')
    getTrustedCertificates(pem, host)
    return pem
  } catch (cause) {
    if (getErrno(cause) === undefined) throw cause
    throw new MirrorError(
      `The certificate file ${path} (upstreams.${host}.ca) cannot be read: ${getFileFailureReason(cause)}.`,
      {
        exit: exitCode.usage,
        cause,
      },
    )
  }
}
