import { connect } from 'node:net'
import { getKindProgram, openKindNodes, type FoundNode, type KindNodes } from '../clients/kind/nodes.ts'
import { isLoopbackUrl } from '../clients/address.ts'
import { openMachineRecords } from '../clients/records.ts'
import { getKindNetworkName, resolveNetworkNames } from '../docker/engine.ts'
import { getErrno, MirrorError } from '../lib/errors.ts'
import { quoteShellWord } from '../lib/process.ts'
import { readProxies } from '../upstream/proxy.ts'
import { type DoctorContext, notRunning, type Outcome, type Report, type Task, toOk, toSkipped } from './context.ts'
import { planStart, toStartCommand } from './start-command.ts'

const connectTimeoutMs = 2000
/** Limits a program in a node, ms: the connection has its own limit there, and an engine under load starts programs slowly. */
const execTimeoutMs = 3500
/** Is the exit code of the script in a node when the connection has not opened in time. */
const timedOut = 124

/** Lists the checks of the mirror's addresses, as clients reach them. */
export function listListenerTasks(context: DoctorContext): Task[] {
  const nodes = openKindNodes(context.machine, getKindProgram(context.machine.env))
  let running: Promise<readonly FoundNode[]> | undefined
  const listNodes = () => (running ??= listRunningNodes(nodes))
  return [
    { ids: ['listeners.loopback'], run: (report) => checkLoopback(context, report) },
    { ids: ['listeners.network', 'listeners.firewall'], run: (report) => checkNetworks(context, report) },
    { ids: ['listeners.proxy'], run: (report) => checkEngineProxy(context, report) },
    {
      ids: ['listeners.node', 'listeners.proxy', 'listeners.firewall'],
      run: (report) => checkNodes(context, nodes, listNodes, report),
    },
  ]
}

/** Distinguishes a connection that was accepted, refused, dropped without an answer, or failed in another way. */
type Reached = 'yes' | 'refused' | 'silent' | 'failed'

/** Opens a connection and closes it at once. */
async function tryConnect(url: string): Promise<Reached> {
  const { hostname, port, protocol } = new URL(url)
  const loopback: Record<string, string> = { '0.0.0.0': '127.0.0.1', '[::]': '::1' }
  const host = loopback[hostname] ?? hostname.replace(/^\[|\]$/g, '')
  const socket = connect({ host, port: Number(port || (protocol === 'https:' ? 443 : 80)) })
  try {
    return await new Promise<Reached>((resolve) => {
      socket.setTimeout(connectTimeoutMs, () => resolve('silent'))
      socket.once('connect', () => resolve('yes'))
      socket.once('error', (error) => resolve(getErrno(error) === 'ECONNREFUSED' ? 'refused' : 'failed'))
    })
  } finally {
    socket.destroy()
  }
}

const words: Readonly<Record<Exclude<Reached, 'yes'>, string>> = {
  refused: 'refuses connections',
  silent: 'does not accept a connection within two seconds',
  failed: 'cannot be reached',
}

async function checkLoopback(context: DoctorContext, report: Report): Promise<void> {
  const id = 'listeners.loopback'
  const endpoints = (await context.found)?.running.endpoints
  if (endpoints === undefined) return report(toSkipped(id, notRunning))
  await Promise.all(
    [...endpoints.cache, ...endpoints.registry, ...endpoints.admin].map(async (url) => {
      const reached = await tryConnect(url)
      if (reached === 'yes') return report(toOk(id, `${url} answers.`, url))
      const { fix } = await planStart(context)
      report({ id, subject: url, state: 'fail', saw: `${url} ${words[reached]}.`, fix })
    }),
  )
}

async function checkNetworks(context: DoctorContext, report: Report): Promise<void> {
  const id = 'listeners.network'
  const { status, found } = context
  const answer = await status
  if (answer === undefined) return report(toSkipped(id, notRunning))
  const isContainer = (await found)?.running.runtime === 'container'
  await Promise.all(
    Object.entries(answer.networks).map(async ([network, { state, url, reason }]) => {
      if (state === 'waiting') return report(toSkipped(id, reason ?? 'the network does not exist yet', network))
      if (state === 'failed' || url === undefined)
        return report({
          id,
          subject: network,
          state: 'fail',
          saw: `The mirror cannot listen on the gateway of the network ${network}: ${reason ?? 'unknown'}`,
          advice: 'The mirror tries again by itself. See: mirror logs',
        })
      if (isContainer) return report(toOk(id, `The mirror is in the network ${network}, at ${url}.`, network))
      const reached = await tryConnect(url)
      if (reached === 'yes') return report(toOk(id, `${url} answers.`, network))
      const { fix } = await planStart(context)
      report({ id, subject: network, state: 'fail', saw: `${url} (network ${network}) ${words[reached]}.`, fix })
    }),
  )
}

/** Lists the running nodes of kind; none when their engine does not answer. */
async function listRunningNodes(nodes: KindNodes): Promise<readonly FoundNode[]> {
  try {
    return (await nodes.list()).filter(({ isRunning }) => isRunning)
  } catch (error) {
    if (error instanceof MirrorError) return []
    throw error
  }
}

async function checkNodes(
  context: DoctorContext,
  nodes: KindNodes,
  listNodes: () => Promise<readonly FoundNode[]>,
  report: Report,
): Promise<void> {
  const id = 'listeners.node'
  const { found, machine, config } = context
  const mirror = await found
  if (mirror === undefined) return report(toSkipped(id, notRunning))
  // The mirror listens on networks of Docker only.
  if (nodes.program !== 'docker') return report(toSkipped(id, `kind runs its nodes by ${nodes.program}`))
  const running = await listNodes()
  if (running.length === 0) return report(toSkipped(id, 'no kind cluster runs'))
  const network = getKindNetworkName(machine.env)
  const url = mirror.running.endpoints.networks[network]
  if (url === undefined) {
    if (!resolveNetworkNames((await config).networks, machine.env).includes(network))
      return report(toSkipped(id, `networks in mirror.yaml does not name ${network}`))
    const { ports, otherFlags, forOwner } = await planStart(context)
    const flag = `--network ${quoteShellWord(network)}`
    return report({
      id,
      state: 'fail',
      saw: `The mirror does not serve the Docker network ${network}, in which the kind nodes are.`,
      fix: {
        command: forOwner(toStartCommand(ports, [...otherFlags.filter((one) => one !== flag), flag])),
        isOwn: false,
      },
    })
  }
  const { fix } = await planStart(context)
  await Promise.all(
    running.map(async ({ name }) => {
      const [reached, variables] = await Promise.all([
        connectInNode(nodes, name, url),
        nodes.exec(name, ['env'], undefined, execTimeoutMs),
      ])
      if (reached === undefined) report(toSkipped(id, tooSlow, name))
      else reportNode(name, url, reached, fix, report)
      if (variables?.exitCode === undefined) report(toSkipped('listeners.proxy', tooSlow, name))
      else reportProxy(name, url, variables.stdout, report)
    }),
  )
}

const tooSlow = 'docker exec took too long, or the node has no bash'

function reportNode(
  node: string,
  url: string,
  reached: Reached,
  fix: NonNullable<Outcome['fix']>,
  report: Report,
): void {
  const { hostname, port } = new URL(url)
  const address = hostname.replace(/^\[|\]$/g, '')
  if (reached === 'yes') {
    report(toOk('listeners.node', `${node} reaches ${url}.`, node))
    return report(toOk('listeners.firewall', undefined, node))
  }
  if (reached === 'silent')
    return report({
      id: 'listeners.firewall',
      subject: node,
      state: 'fail',
      saw: `A connection from ${node} to ${url} gets no answer, so a firewall probably drops it.`,
      fix: {
        command: `sudo ${address.includes(':') ? 'ip6tables' : 'iptables'} -I INPUT -p tcp -d ${address} --dport ${port} -j ACCEPT`,
        isOwn: false,
      },
      advice: `With ufw: sudo ufw allow proto tcp to ${address} port ${port}`,
    })
  report({
    id: 'listeners.node',
    subject: node,
    state: 'fail',
    saw: `${url} ${words[reached]} from ${node}.`,
    fix,
  })
}

/**
 * Opens a connection inside a node by bash and sleep, which each image of kind has. Undefined when the script itself did not run, or
 * not end in time, which says nothing about the connection.
 */
async function connectInNode(nodes: KindNodes, node: string, url: string): Promise<Reached | undefined> {
  const { hostname, port } = new URL(url)
  const script = [
    `(exec 3<>/dev/tcp/${hostname.replace(/^\[|\]$/g, '')}/${port}) & pid=$!`,
    `for _ in {1..${connectTimeoutMs / 100}}; do kill -0 $pid 2>/dev/null || { wait $pid; exit; }; sleep 0.1; done`,
    `kill -9 $pid; exit ${timedOut}`,
  ].join('\n')
  const result = await nodes.exec(node, ['bash', '-c', script], undefined, execTimeoutMs)
  if (result === undefined) return 'failed'
  const { exitCode, stderr } = result
  // Docker and bash name a program that cannot run or is not there by 126 and 127.
  if (exitCode === undefined || exitCode === 126 || exitCode === 127) return undefined
  if (exitCode === 0) return 'yes'
  if (exitCode === timedOut) return 'silent'
  return /refused/i.test(stderr) ? 'refused' : 'failed'
}

/** Reports a proxy that dockerd would use for the mirror. It needs none for a loopback address. */
async function checkEngineProxy({ machine }: DoctorContext, report: Report): Promise<void> {
  const id = 'listeners.proxy'
  const records = (await openMachineRecords(machine).list()).filter(
    ({ client, root, undone }) => client === 'docker' && root === undefined && undone !== true,
  )
  const urls = records.map(({ cache }) => cache).filter((url) => !isLoopbackUrl(url))
  if (urls.length === 0) return
  const format = '{{.HTTPProxy}}\n{{.HTTPSProxy}}\n{{.NoProxy}}'
  const info = await machine.runCommand('docker', ['info', '--format', format], { timeoutMs: connectTimeoutMs })
  if (info?.exitCode !== 0) return report(toSkipped(id, 'docker info does not answer', 'docker'))
  const [http, https, none] = info.stdout.split('\n').map((line) => line.trim())
  for (const url of urls) {
    const proxy = findProxy(url, { http_proxy: http, https_proxy: https, no_proxy: none })
    if (proxy === undefined) report(toOk(id, undefined, 'docker'))
    else
      report({
        id,
        subject: 'docker',
        state: 'fail',
        saw: `dockerd uses the proxy ${proxy} for the mirror: its NO_PROXY does not have ${new URL(url).hostname}.`,
        advice: `Add ${new URL(url).hostname} to NO_PROXY of dockerd (systemctl edit docker, or the settings of its program), then restart it.`,
      })
  }
}

/** Returns the name of the proxy that a program with these variables uses for a URL; undefined for a direct connection. */
function findProxy(url: string, env: Readonly<Record<string, string | undefined>>): string | undefined {
  return readProxies(env).find(new URL(url))?.name
}

/** Reports a proxy that containerd in a node would use for the mirror. */
function reportProxy(node: string, url: string, variables: string, report: Report): void {
  const id = 'listeners.proxy'
  const env = Object.fromEntries(
    variables.split('\n').flatMap((line) => {
      const [, name, value] = /^(\w+)=(.*)$/.exec(line) ?? []
      return name === undefined ? [] : [[name.toLowerCase(), value]]
    }),
  )
  const { http_proxy, https_proxy, no_proxy } = env
  const proxy = findProxy(url, { http_proxy, https_proxy, no_proxy })
  if (proxy === undefined) return report(toOk(id, undefined, node))
  report({
    id,
    subject: node,
    state: 'fail',
    saw: `${node} uses the proxy ${proxy} for the mirror: its NO_PROXY does not have ${new URL(url).hostname}.`,
    advice: `Add ${new URL(url).hostname} to NO_PROXY of the shell that runs kind, then create the cluster again.`,
  })
}
