import { exitCode, MirrorError } from '../lib/errors.ts'

/** The proxies that requests go through; an empty string is none. */
export interface Proxies {
  readonly httpProxy: string
  readonly httpsProxy: string
  readonly noProxy: string
}

/** Reads `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY`, lower case first. Throws a MirrorError for a proxy that is no URL. */
export function readProxies(env: Readonly<Record<string, string | undefined>>): Proxies {
  const httpProxy = readProxy(env, 'http_proxy')
  const httpsProxy = readProxy(env, 'https_proxy')
  const noProxy = readVariable(env, 'no_proxy')
  return { httpProxy, httpsProxy, noProxy: noProxy === '*' ? '*' : `${noProxy},localhost,127.0.0.1,[::1]` }
}

function readProxy(env: Readonly<Record<string, string | undefined>>, name: string): string {
  const value = readVariable(env, name)
  if (value === '') return ''
  const url = value.includes('://') ? value : `http://${value}`
  if (URL.canParse(url) && /^https?:/i.test(url)) return url
  throw new MirrorError(`The proxy in ${name.toUpperCase()} is not an http or https URL.`, {
    exit: exitCode.usage,
    hints: [`Set ${name.toUpperCase()} to something like http://proxy.example:3128`],
  })
}

function readVariable(env: Readonly<Record<string, string | undefined>>, name: string): string {
  return (env[name] ?? env[name.toUpperCase()] ?? '').trim()
}
