import { createHash, createHmac, randomBytes, timingSafeEqual } from 'node:crypto'
import type { IncomingMessage } from 'node:http'
import { isLoopbackAddress } from '../../lib/network.ts'
import { type Clock, systemClock } from '../../lib/time.ts'
import { OciError } from '../../oci/errors.ts'
import type { SessionReport } from '../activity.ts'
import type { TicketReport } from '../api.ts'

/** Limits the time in which a ticket can be exchanged for a session, ms. */
const ticketMs = 60_000
const maxTickets = 5
/** Limits the time without a request until a session ends, ms. */
const sessionIdleMs = 12 * 3_600_000
const maxSessions = 20
/** Limits the cookies of one name that are tried: another program of this machine may set some of that name. */
const maxCookies = 5

/** Names what a request has proven: the token of the state folder, or a session of the dashboard. */
export type Credential = 'token' | 'session'

/** Reports whether a request that was allowed to read still is. */
export type ReadPermit = () => boolean

interface Session {
  /** Holds the value of `X-Mirror-Session`. */
  readonly secret: string
  /** Holds the origin of the page that began the session. */
  readonly origin: string
  /** Gives the time of the last request, monotonic ms. */
  usedAt: number
}

interface Ticket {
  /** Gives the time of its end, monotonic ms. */
  readonly until: number
  /** Holds the key of the session that it began. */
  session?: string
}

/** Describes the answer to a page that has a session, or has none. */
export interface SessionAnswer {
  readonly report: SessionReport
  /** Holds the value of `Set-Cookie`. */
  readonly cookie?: string
}

interface SessionOptions {
  /** Holds the token in the state folder. */
  readonly token: string
  readonly clock?: Pick<Clock, 'monotonic'>
}

/**
 * Decides who may read and change through the admin listener (docs/decisions/0026). Commands send the token. A page gets a session
 * for a ticket, which a command has fetched with the token. Sessions are in memory only, so that a restart ends all of them.
 */
export class Sessions {
  readonly #token: string
  readonly #clock: Pick<Clock, 'monotonic'>
  readonly #cookieName: string
  /** Holds the tickets by their hashes, the oldest first. */
  readonly #tickets = new Map<string, Ticket>()
  /** Maps the hashes of cookies to sessions; the least recently used first. */
  readonly #sessions = new Map<string, Session>()

  constructor({ token, clock = systemClock }: SessionOptions) {
    this.#token = token
    this.#clock = clock
    // Separates mirrors on one machine, because browsers send the cookies of a host to all of its ports.
    const instance = createHmac('sha256', token).update('cookie name').digest('hex').slice(0, 16)
    this.#cookieName = `mirror-session-${instance}`
  }

  /** Creates a ticket, which begins one session within a minute. */
  createTicket(): TicketReport {
    const ticket = createRandom()
    this.#tickets.set(hash(ticket), { until: this.#clock.monotonic() + ticketMs })
    dropOldest(this.#tickets, maxTickets)
    return { ticket, expiresInSeconds: ticketMs / 1000 }
  }

  /**
   * Begins a session of a page of this listener. Throws an OciError: 401 for a ticket that is not valid, 403 for another origin. A ticket
   * that comes twice ends the session that it began, because somebody else may have used it first.
   */
  begin(request: IncomingMessage, ticket: unknown): SessionAnswer {
    const origin = getOwnOrigin(request)
    const given = typeof ticket === 'string' ? this.#tickets.get(hash(ticket)) : undefined
    if (given?.session !== undefined) this.#sessions.delete(given.session)
    if (!given || given.session !== undefined || this.#clock.monotonic() >= given.until)
      throw new OciError(
        'UNAUTHORIZED',
        401,
        'This link has been used, or is older than a minute. Run mirror dashboard for a new one.',
      )
    this.#drop(request)
    const [id, secret] = [createRandom(), createRandom()]
    given.session = hash(id)
    this.#sessions.set(given.session, { secret, origin, usedAt: this.#clock.monotonic() })
    dropOldest(this.#sessions, maxSessions)
    return { report: { active: true, secret }, cookie: this.#formatCookie(id, origin, sessionIdleMs / 1000) }
  }

  /**
   * Describes the session of the page, without its secret: browsers send the cookie to every port of this machine, so that another
   * server there could ask for it. Renews the cookie, so that the browser keeps it as long as the server does.
   */
  describe(request: IncomingMessage): SessionAnswer {
    const found = this.#find(request)
    if (!found) return { report: { active: false } }
    const { id, session } = found
    return { report: { active: true }, cookie: this.#formatCookie(id, session.origin, sessionIdleMs / 1000) }
  }

  /** Ends the session of the page. Throws an OciError as `checkChange` does. */
  end(request: IncomingMessage): SessionAnswer {
    this.#checkSession(request)
    this.#drop(request)
    return { report: { active: false }, cookie: this.#formatCookie('', getOwnOrigin(request), 0) }
  }

  /**
   * Throws an OciError 401 for a read from another machine without the token and without a session. Returns what still allows the read
   * later: a session may end while a response is under way.
   */
  checkRead(request: IncomingMessage): ReadPermit {
    // Renews the session, also where a read needs none.
    const found = this.#find(request)
    if (isLoopbackAddress(request.socket.remoteAddress ?? '') || this.#hasToken(request)) return () => true
    if (!found) throw createTokenError()
    const key = hash(found.id)
    return () => this.#isActive(this.#sessions.get(key))
  }

  /**
   * Returns what allows the request to change something: the token from a program that is no browser, or a session of a page of this
   * listener. Throws an OciError: 401 without either, 403 for another page.
   */
  checkChange(request: IncomingMessage): Credential {
    if (!this.#hasToken(request)) {
      this.#checkSession(request)
      return 'session'
    }
    // Refuses pages in a browser, which may send a POST to any address; their Origin header identifies them.
    if (request.headers.origin !== undefined) throw new OciError('DENIED', 403, 'Browsers may not use the token.')
    return 'token'
  }

  #checkSession(request: IncomingMessage): void {
    const found = this.#find(request)
    if (!found) throw createTokenError()
    const { secret, origin } = found.session
    // A page of another port sends the cookie, too, but cannot read the secret.
    if (!isSame(request.headers['x-mirror-session'], secret))
      throw new OciError('DENIED', 403, 'A change needs the header X-Mirror-Session.')
    if (getOwnOrigin(request) !== origin) throw createOriginError()
  }

  #hasToken({ headers }: IncomingMessage): boolean {
    return isSame(/^Bearer (\S+)$/.exec(headers.authorization ?? '')?.[1], this.#token)
  }

  /** Finds the session of a request's cookie, and renews it. */
  #find(request: IncomingMessage): { readonly id: string; readonly session: Session } | undefined {
    const now = this.#clock.monotonic()
    for (const id of this.#readCookies(request)) {
      const key = hash(id)
      const session = this.#sessions.get(key)
      if (!session) continue
      this.#sessions.delete(key)
      if (!this.#isActive(session)) continue
      session.usedAt = now
      this.#sessions.set(key, session)
      return { id, session }
    }
    return undefined
  }

  #isActive(session: Session | undefined): boolean {
    return session !== undefined && this.#clock.monotonic() - session.usedAt < sessionIdleMs
  }

  #drop(request: IncomingMessage): void {
    for (const id of this.#readCookies(request)) this.#sessions.delete(hash(id))
  }

  #readCookies({ headers }: IncomingMessage): string[] {
    const prefix = `${this.#cookieName}=`
    const pairs = (headers.cookie ?? '').split(';').map((pair) => pair.trim())
    return pairs.flatMap((pair) => (pair.startsWith(prefix) ? pair.slice(prefix.length) : [])).slice(0, maxCookies)
  }

  #formatCookie(id: string, origin: string, seconds: number): string {
    // Browsers send a Secure cookie only over HTTPS, which a proxy in front of the mirror may speak.
    const secure = origin.startsWith('https:') ? '; Secure' : ''
    return `${this.#cookieName}=${id}; HttpOnly; SameSite=Strict; Path=/; Max-Age=${seconds}${secure}`
  }
}

/**
 * Returns the origin of a page of this listener. Throws an OciError 403 for any other request. The caller has checked the Host, which
 * browsers set themselves.
 */
function getOwnOrigin({ headers }: IncomingMessage): string {
  const { origin, host } = headers
  const site = headers['sec-fetch-site']
  const isOwn = origin === `http://${host}` || origin === `https://${host}`
  if (!isOwn || (site !== undefined && site !== 'same-origin')) throw createOriginError()
  return origin
}

function createOriginError(): OciError {
  return new OciError('DENIED', 403, 'Only the page of this listener may do this.')
}

function createTokenError(): OciError {
  return new OciError('UNAUTHORIZED', 401, 'This request needs the token in the state folder.')
}

/** Creates a secret of 256 random bits. */
function createRandom(): string {
  return randomBytes(32).toString('base64url')
}

/** Hashes a secret, so that the time of a look-up reveals nothing about it. */
function hash(secret: string): string {
  return createHash('sha256').update(secret).digest('hex')
}

/** Compares a value with a secret in a time that does not depend on the value. */
function isSame(given: string | string[] | undefined, secret: string): boolean {
  const [one, other] = [Buffer.from(typeof given === 'string' ? given : ''), Buffer.from(secret)]
  return one.length === other.length && timingSafeEqual(one, other)
}

/** Removes the first entries of a map until it has at most `limit`. */
function dropOldest(entries: Map<string, unknown>, limit: number): void {
  for (const key of entries.keys()) {
    if (entries.size <= limit) return
    entries.delete(key)
  }
}
