import { createHash } from 'node:crypto'
import { readdir, readFile } from 'node:fs/promises'
import type { IncomingMessage, ServerResponse } from 'node:http'
import { extname, join, relative, sep } from 'node:path'
import { findPackageRoot, ignoreMissing } from '../../lib/fs.ts'
import { matchesEtag } from '../../server/respond.ts'

/** Holds the files of the dashboard by their URL path. */
export type Page = ReadonlyMap<string, PageFile>

interface PageFile {
  readonly body: Buffer
  readonly type: string
  readonly etag: string
  /** Is true when the name has a hash of the content, so that browsers may keep the file for ever. */
  readonly isImmutable: boolean
}

const types: Readonly<Record<string, string>> = {
  '.css': 'text/css; charset=utf-8',
  '.html': 'text/html; charset=utf-8',
  '.ico': 'image/x-icon',
  '.js': 'text/javascript; charset=utf-8',
  '.json': 'application/json',
  '.png': 'image/png',
  '.svg': 'image/svg+xml',
  '.txt': 'text/plain; charset=utf-8',
  '.woff2': 'font/woff2',
}

/**
 * Lists the directives of the page: scripts and styles only from its own files, requests only to this listener, no frames, no forms,
 * and no HTML from strings. https://www.w3.org/TR/CSP3/
 */
const policy = [
  "default-src 'none'",
  "script-src 'self'",
  "style-src 'self'",
  "img-src 'self' data:",
  "connect-src 'self'",
  "font-src 'self'",
  "base-uri 'none'",
  "form-action 'none'",
  "frame-ancestors 'none'",
  "require-trusted-types-for 'script'",
].join('; ')

const pageHeaders = {
  'content-security-policy': policy,
  'cross-origin-opener-policy': 'same-origin',
  'permissions-policy': 'camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()',
  'x-frame-options': 'DENY',
}

/** Returns the folder into which the build writes the dashboard. */
export function getPageFolder(): string {
  return join(findPackageRoot(), 'dist', 'dashboard')
}

/**
 * Reads the files of the dashboard into memory, because the package may be replaced while the server runs. Empty when the build has
 * no dashboard. Leaves out files of unknown types.
 */
export async function loadPage(folder: string): Promise<Page> {
  const entries = (await ignoreMissing(() => readdir(folder, { recursive: true, withFileTypes: true }))) ?? []
  const files = new Map<string, PageFile>()
  for (const entry of entries) {
    const type = types[extname(entry.name)]
    if (!entry.isFile() || type === undefined) continue
    const file = join(entry.parentPath, entry.name)
    const body = await readFile(file)
    const name = relative(folder, file).split(sep).join('/')
    const etag = `"${createHash('sha256').update(body).digest('base64url')}"`
    files.set(name === 'index.html' ? '/' : `/${name}`, { body, type, etag, isImmutable: name.startsWith('assets/') })
  }
  return files
}

/** Reports whether a path belongs to the dashboard, so that no other part of the admin listener answers it. */
export function isPagePath(page: Page, path: string): boolean {
  return path === '/' || path.startsWith('/assets/') || page.has(path)
}

/** Answers GET and HEAD of a path of the dashboard. The files contain nothing secret. */
export function sendPage(request: IncomingMessage, response: ServerResponse, page: Page, path: string): void {
  // Looks the path up as it is: no URL becomes a path of the disk.
  const file = page.get(path)
  if (!file) return sendText(request, response, page.size > 0 ? 'Not found.\n' : missingPage)
  const cacheControl = file.isImmutable ? 'public, max-age=31536000, immutable' : 'no-cache'
  const headers = { ...pageHeaders, 'cache-control': cacheControl, etag: file.etag }
  if (matchesEtag(request, file.etag)) return void response.writeHead(304, headers).end()
  response.writeHead(200, { ...headers, 'content-type': file.type, 'content-length': file.body.length })
  response.end(request.method === 'HEAD' ? undefined : file.body)
}

const missingPage = 'This build of mirror has no dashboard. To see the same numbers, run: mirror status\n'

function sendText(request: IncomingMessage, response: ServerResponse, text: string): void {
  response.writeHead(404, {
    ...pageHeaders,
    'cache-control': 'no-store',
    'content-type': 'text/plain; charset=utf-8',
    'content-length': Buffer.byteLength(text),
  })
  response.end(request.method === 'HEAD' ? undefined : text)
}
