// Starts the measured servers and their upstreams. All of them listen on loopback only.
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, openSync, readFileSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { manifestType, repository } from './content.js'

const here = dirname(fileURLToPath(import.meta.url))
const program = join(here, '..', 'bin', 'run.js')

/**
 * @typedef {{ url: string, pid: number, stop: () => Promise<void> }} Running
 */

/**
 * Starts nginx, which serves the content from the disk.
 * @param {string} folder @param {string} content @param {readonly { tag: string, digest: string }[]} tags
 */
export async function startNginx(folder, content, tags) {
  mkdirSync(folder, { recursive: true })
  const port = await freePort()
  const user = process.getuid?.() === 0 ? 'user root;' : ''
  writeFileSync(
    join(folder, 'nginx.conf'),
    `${user} daemon off; worker_processes 1; pid ${folder}/pid; error_log ${folder}/error.log;
events { worker_connections 8192; }
http {
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000000;
  client_body_temp_path ${folder}/a; proxy_temp_path ${folder}/b; fastcgi_temp_path ${folder}/c;
  uwsgi_temp_path ${folder}/d; scgi_temp_path ${folder}/e;
  map $uri $digest { ${tags.map(({ tag, digest }) => `"~/${tag}$" "${digest}";`).join(' ')} "~/(?<it>sha256:[0-9a-f]+)$" $it; }
  server {
    listen 127.0.0.1:${port} backlog=1024; root ${content};
    location = /v2/ { default_type application/json; return 200 '{}'; }
    location ~ /manifests/ { types {} default_type ${manifestType}; add_header Docker-Content-Digest $digest; }
    location ~ /blobs/ { types {} default_type application/octet-stream; add_header Docker-Content-Digest $digest; }
  }
}
`,
  )
  return launch('nginx', ['-c', join(folder, 'nginx.conf'), '-e', `${folder}/error.log`], port)
}

/**
 * Starts Debian's docker-registry: as a pull-through cache, or without an upstream as a registry for pushes.
 * @param {string} folder @param {string} [upstream]
 */
export async function startDockerRegistry(folder, upstream) {
  mkdirSync(folder, { recursive: true })
  const port = await freePort()
  const config = {
    version: 0.1,
    log: { level: 'error', accesslog: { disabled: true } },
    storage: { filesystem: { rootdirectory: join(folder, 'data'), maxthreads: 100 }, delete: { enabled: true } },
    http: { addr: `127.0.0.1:${port}` },
    ...(upstream === undefined ? {} : { proxy: { remoteurl: upstream } }),
  }
  writeFileSync(join(folder, 'config.yml'), JSON.stringify(config))
  return launch('docker-registry', ['serve', join(folder, 'config.yml')], port)
}

/**
 * Starts the mirror with its defaults, except for its upstream, `cache`, `registry` and the tags' freshness. `build`: the folder of
 * another build of the mirror.
 */
export async function startMirror(folder, upstream, options = {}) {
  const { env = {}, cache = {}, registry = { enabled: false }, nodeArgs = [], build } = options
  mkdirSync(folder, { recursive: true })
  const config = {
    cache: { listen: ['127.0.0.1:0'], tagFreshness: '1h', ...cache },
    registry,
    admin: { listen: ['127.0.0.1:0'] },
    networks: [],
    upstreams: { 'docker.io': { url: upstream, credentials: 'anonymous' } },
  }
  writeFileSync(join(folder, 'mirror.yaml'), JSON.stringify(config))
  // Start the server as `mirror up` does.
  const script = build === undefined ? program : join(build, 'bin', 'run.js')
  const child = spawn(process.execPath, ['--max-semi-space-size=8', ...nodeArgs, script, 'serve'], {
    env: { ...process.env, ...env, MIRROR_HOME: folder },
    // Log to a file, as `mirror up` does.
    stdio: ['ignore', 'ignore', openSync(join(folder, 'log'), 'a', 0o600), 'ipc'],
  })
  const ended = new Promise((resolve) => child.once('exit', resolve))
  const ready = once(child, 'message').then(([message]) => message)
  const message = await Promise.race([ready, ended])
  if (message?.type !== 'ready') throw new Error(readFileSync(join(folder, 'log'), 'utf8'))
  child.disconnect()
  return {
    url: message.endpoints.cache[0],
    adminUrl: message.endpoints.admin[0],
    registryUrl: message.endpoints.registry[0],
    pid: child.pid,
    stop: () => end(child, ended),
  }
}

/** Starts a Node script of this folder that prints its port on stdout. */
export async function startScript(name, args) {
  const child = spawn(process.execPath, [join(here, name), ...args], { stdio: ['ignore', 'pipe', 'inherit'] })
  const ended = new Promise((resolve) => child.once('exit', resolve))
  const [line] = await once(child.stdout, 'data')
  return { url: `http://127.0.0.1:${Number(String(line))}`, pid: child.pid, stop: () => end(child, ended) }
}

/** Returns the URL of a blob. @param {Running} server @param {{ digest: string }} blob */
export function blobUrl({ url }, { digest }) {
  return `${url}/v2/${repository}/blobs/${digest}`
}

/** Returns the URL of a manifest. @param {Running} server @param {string} reference */
export function manifestUrl({ url }, reference) {
  return `${url}/v2/${repository}/manifests/${reference}`
}

async function launch(command, args, port) {
  const child = spawn(command, args, {
    stdio: ['ignore', 'ignore', 'ignore'],
    env: { ...process.env, OTEL_TRACES_EXPORTER: 'none' },
  })
  const ended = new Promise((resolve) => child.once('exit', resolve))
  const url = `http://127.0.0.1:${port}`
  for (let tries = 0; ; tries++) {
    const answer = await fetch(`${url}/v2/`).catch(() => undefined)
    if (answer?.ok) break
    if (tries === 100 || child.exitCode !== null) throw new Error(`${command} does not answer`)
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
  return { url, pid: child.pid, stop: () => end(child, ended) }
}

async function end(child, ended) {
  child.kill('SIGTERM')
  const late = setTimeout(() => child.kill('SIGKILL'), 10_000)
  await ended
  clearTimeout(late)
}

/** Returns a port that was free a moment ago. */
export async function freePort() {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address()
  server.close()
  await once(server, 'close')
  return port
}
