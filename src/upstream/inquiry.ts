import { lookup } from 'node:dns'
import { systemClock, type Clock } from '../lib/time.ts'
import type { Logger } from '../lib/logger.ts'
import type { RunCommand } from '../lib/process.ts'
import type { Slots } from '../lib/async.ts'
import { createAddressGuard, type LookupAll } from './address-guard.ts'
import { createAuthorizer } from './auth.ts'
import { trustedCertificates } from './certificates.ts'
import { createCircuit } from './circuit.ts'
import { createCooldown } from './cooldown.ts'
import { secretsIn, secretsOf } from './credential.ts'
import type { Identify } from './identity.ts'
import { createCredentials, credentialHostOf, type CredentialsSource } from './credentials.ts'
import type { Lane } from './agents.ts'
import { createExchange, type Answer } from './transport.ts'
import { LimitedError } from './limited-error.ts'
import { createPrefix } from './prefix.ts'
import { readProxies } from './proxy.ts'
import { readRateLimit } from './rate-limit.ts'
import { createRedirectTargets } from './redirect-targets.ts'
import { refusal } from './refusal.ts'
import { withRetries } from './retry.ts'
import { createTokenCache } from './token-cache.ts'
import { UpstreamError, type Access, type AskOptions, type RateLimit, type UpstreamHealth } from './upstream.ts'

export interface InquiryOptions {
  /** The name clients use. */
  readonly host: string
  /** Base URL; `/v2/` comes after it. */
  readonly url: string
  /** The path below which it keeps its repositories: `/v2/<prefix>/<name>`. Nothing that leaves here shows it. */
  readonly prefix?: string | undefined
  readonly credentials: CredentialsSource
  readonly identify: Identify
  /** Further hosts that may see the credential. */
  readonly tokenHosts: readonly string[]
  /** PEM text of a CA to trust as well. */
  readonly ca: string | undefined
  /** Milliseconds. */
  readonly timeouts: { readonly connect: number; readonly headers: number; readonly idle: number }
  /** Whether the upstream may be at a private address: the user configured it by name. */
  readonly allowPrivate: boolean
  /** For proxies, and passwords kept in the environment. */
  readonly env: Readonly<Record<string, string | undefined>>
  /** Path of Docker's config.json; see `dockerConfigPath`. */
  readonly dockerConfig: string
  readonly userAgent: string
  /** Requests under way, of all upstreams together; no limit when not given. */
  readonly requests?: Slots | undefined
  /** Whether connections are kept for the next request; they are when not given. */
  readonly keepAlive?: boolean | undefined
  readonly runCommand: RunCommand
  readonly logger: Logger
  readonly clock?: Clock
  readonly random?: () => number
  readonly lookup?: LookupAll
}

export interface Question extends AskOptions {
  readonly method: 'GET' | 'HEAD'
  readonly name: string
  /** Below `/v2/<name>/`. */
  readonly path: string
  readonly headers?: Readonly<Record<string, string>>
  readonly lane?: Lane
  /** Statuses that mean the same as a 404 here. */
  readonly meansAbsent?: readonly number[]
}

export interface Reply {
  readonly answer: Answer
  readonly identity: string
}

/** Asking one upstream, with everything that stands between a question and a good answer to it. */
export interface Inquiry {
  /**
   * Asks until there is a 200 (or a 206 to a range) that `read` makes sense of. Throws an UpstreamError, or the signal's reason.
   */
  ask<T>(question: Question, read: (reply: Reply) => Promise<T> | T): Promise<T>
  identity(access: Access): Promise<string>
  health(): UpstreamHealth
  close(): Promise<void>
}

/** Throws a MirrorError for a CA or a proxy that cannot be used. */
export function createInquiry(options: InquiryOptions): Inquiry {
  const { host, identify, logger, clock = systemClock, random = Math.random } = options
  const url = new URL(options.url)
  const base = `${url.origin}${url.pathname.replace(/\/+$/, '')}/v2`
  const road = {
    ...options,
    guard: createAddressGuard({ lookup, ...options, url }),
    certificates: options.ca === undefined ? undefined : trustedCertificates(options.ca, host),
    proxies: readProxies(options.env),
    clock,
  }
  const exchange = createExchange(road)
  const targets = createRedirectTargets(road)
  const credentials = createCredentials({
    ...options,
    host: credentialHostOf(host, options),
    source: options.credentials,
    clock,
  })
  const tokens = createTokenCache(host, { exchange, clock })
  const ping = () => exchange.send({ method: 'GET', url: new URL(`${base}/`), headers: {}, lane: 'questions' })
  const authorizer = createAuthorizer({ ...options, url, credentials, tokens, clock, ping })
  const circuit = createCircuit(host, clock, logger)
  const cooldown = createCooldown(host, clock)
  let rateLimit: RateLimit | undefined
  const prefix = createPrefix(options.prefix)

  const findCredential = async (access: Access) => (access === 'credentialed' ? credentials.find() : undefined)

  async function attempt<T>(
    question: Question,
    credential: Awaited<ReturnType<typeof findCredential>>,
    read: (reply: Reply) => Promise<T> | T,
  ): Promise<T> {
    const { method, name, path, headers = {}, lane = 'questions', signal } = question
    const spelled = prefix.add(name)
    const target = new URL(`${base}/${spelled}/${path}`)
    const secrets = secretsOf(credential)
    const { answer, identity } = await authorizer.send({ name: spelled, credential, signal }, async (authorization) => {
      if (authorization !== undefined) secrets.push(...secretsIn(authorization))
      const all = authorization === undefined ? headers : { ...headers, authorization }
      const answer = await exchange.send({ method, url: target, headers: all, lane, repository: name, signal, targets })
      if (!answer.foreign) rateLimit = readRateLimit(answer.header, clock.wall()) ?? rateLimit
      return answer
    })
    const isWanted = answer.status === 200 || (answer.status === 206 && headers['range'] !== undefined)
    if (!isWanted) throw await refusal(host, answer, clock, { meansAbsent: question.meansAbsent, secrets })
    return read({ answer, identity })
  }

  async function noteLimit<T>(identity: string, isExtra: boolean, answered: Promise<T>): Promise<T> {
    try {
      return await answered
    } catch (error) {
      if (error instanceof LimitedError && !isExtra) cooldown.note(identity, error.limit)
      throw error
    }
  }

  return {
    async ask(question, read) {
      const { method, name, path, signal, isExtra = false } = question
      const credential = await findCredential(question.access)
      const identity = identify(credential, host)
      const spendsQuota = method === 'GET' && path.startsWith('manifests/')
      const source = { repository: name, request: `${identity} ${method} ${name}/${path}` }
      const once = () => {
        cooldown.check(identity, spendsQuota)
        return circuit.run(source, () => noteLimit(identity, isExtra, attempt(question, credential, read)))
      }
      try {
        return await withRetries(once, { clock, random, signal })
      } catch (error) {
        if (error instanceof UpstreamError) {
          error.message = prefix.hide(error.message, name)
          const fields = { upstream: host, repository: name, method, path, reason: error.message }
          logger.debug(fields, 'an upstream request failed')
        }
        throw error
      }
    },
    identity: async (access) => identify(await findCredential(access), host),
    health: () => ({ state: circuit.state, rateLimit }),
    close: async () => void (await Promise.all([exchange.close(), targets.close()])),
  }
}
