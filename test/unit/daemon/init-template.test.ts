import { execFileSync, spawnSync } from 'node:child_process'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { parse, parseAllDocuments } from 'yaml'
import { nodeInImage } from '../../../src/admin/client.ts'
import { program } from '../../../src/daemon/container/spec.ts'
import { renderTemplate, type TemplateName } from '../../../src/daemon/init.ts'

const templates = fileURLToPath(new URL('../../../templates', import.meta.url))

interface Pod {
  volumes: object[]
  containers: [
    {
      image: string
      command: string[]
      args: string[]
      resources: { limits: object }
      ports: { name: string }[]
      readinessProbe: { httpGet: { port: string } }
      livenessProbe: { tcpSocket: { port: string } }
    },
  ]
}

let home: string
beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), 'mirror-template-'))
})
afterEach(() => rm(home, { recursive: true }))

const render = (name: TemplateName, image?: string) =>
  renderTemplate({
    name,
    surroundings: {
      platform: 'linux',
      env: {
        MIRROR_HOME: home,
        MIRROR_CACHE_PORT: '6055',
        MIRROR_CACHE_MAX_SIZE: '10GiB',
        HTTPS_PROXY: 'http://p:1/"$x"%',
      },
      homedir: home,
      cwd: home,
    },
    program: '/opt/my apps/mirror/bin/run.js',
    templates,
    image,
  })

const hasProgram = (file: string, ...args: string[]) => spawnSync(file, args).status === 0

describe('the template for', () => {
  test('compose runs the image with a size limit, on loopback only, with a volume', async () => {
    const text = await render('compose', 'registry.example/mirror:1')
    const { services, volumes, networks } = parse(text) as Record<string, Record<string, Record<string, unknown>>>
    const { mirror } = services!
    expect(mirror).toMatchObject({
      image: 'registry.example/mirror:1',
      // Needs both, because an image made from this machine's Node has neither.
      entrypoint: [nodeInImage, program],
      command: ['serve'],
      mem_limit: '512m',
      read_only: true,
      volumes: ['data:/data'],
      environment: { MIRROR_DATA: '/data', MIRROR_CACHE_MAX_SIZE: '10GiB' },
      ports: ['127.0.0.1:6055:5055', '127.0.0.1:5001:5001', '127.0.0.1:5056:5056'],
    })
    expect(Object.keys(volumes!)).toEqual(['data'])
    expect(networks!['kind']).toEqual({ external: true })
    if (!hasProgram('docker', 'compose', 'version')) return
    await writeFile(join(home, 'compose.yaml'), text)
    execFileSync('docker', ['compose', '--file', join(home, 'compose.yaml'), 'config', '--quiet'])
  })

  test('Kubernetes has a volume claim, a deployment that uses it, and a service', async () => {
    const documents = parseAllDocuments(await render('k8s', 'registry.example/mirror:1'))
    expect(documents.flatMap(({ errors }) => errors)).toEqual([])
    const [claim, deployment, service] = documents.map((document) => document.toJS() as unknown) as [
      { kind: string; metadata: { name: string }; spec: { resources: { requests: { storage: string } } } },
      {
        kind: string
        spec: { selector: { matchLabels: object }; template: { metadata: { labels: object }; spec: Pod } }
      },
      { kind: string; spec: { selector: object; ports: { targetPort: string }[] } },
    ]
    expect([claim.kind, deployment.kind, service.kind]).toEqual(['PersistentVolumeClaim', 'Deployment', 'Service'])
    expect(claim.spec.resources.requests.storage).toBe('13Gi')
    const { metadata, spec } = deployment.spec.template
    const [container] = spec.containers
    expect(container).toMatchObject({
      image: 'registry.example/mirror:1',
      command: [nodeInImage, program],
      args: ['serve'],
    })
    expect(container.resources.limits).toEqual({ memory: '512Mi' })
    expect(spec.volumes[0]).toMatchObject({ persistentVolumeClaim: { claimName: claim.metadata.name } })
    expect(deployment.spec.selector.matchLabels).toEqual(metadata.labels)
    expect(service.spec.selector).toEqual(metadata.labels)
    const names = container.ports.map(({ name }) => name)
    for (const { targetPort } of service.spec.ports) expect(names).toContain(targetPort)
    const probed = [container.readinessProbe.httpGet.port, container.livenessProbe.tcpSocket.port]
    for (const port of probed) expect(names).toContain(port)
  })

  test('Caddy has balanced blocks of directives, in front of both ports', async () => {
    const lines = (await render('caddy')).split('\n').map((line) => line.replace(/(^|\s)#.*$/, '').trim())
    let depth = 0
    for (const line of lines) {
      if (line.endsWith('{')) depth += 1
      else if (line === '}') depth -= 1
      else expect(line).not.toMatch(/(^|\s)[{}](\s|$)/)
      expect(depth).toBeGreaterThanOrEqual(0)
    }
    expect(depth).toBe(0)
    expect(lines.filter((line) => line.startsWith('reverse_proxy'))).toEqual([
      'reverse_proxy 127.0.0.1:6055 {',
      'reverse_proxy 127.0.0.1:5001 {',
    ])
  })

  test('systemd is a unit that systemd accepts', async () => {
    const text = await render('systemd')
    expect(text).toContain('/opt/my apps/mirror/bin/run.js')
    expect(text).toContain('MIRROR_CACHE_PORT=6055')
    expect(text).not.toMatch(/@[A-Z]+@/)
    if (!hasProgram('systemd-analyze', '--version')) return
    const file = join(home, 'mirror.service')
    await writeFile(file, text)
    const { stdout, stderr } = spawnSync('systemd-analyze', ['--user', 'verify', file], { encoding: 'utf8' })
    expect((stdout + stderr).split('\n').filter((line) => line.includes('mirror.service'))).toEqual([])
  })

  test('launchd is a property list with the program and its variables', async () => {
    const text = await render('launchd')
    expect(text).not.toMatch(/@[A-Z]+@/)
    const strings = [...text.matchAll(/<(key|string)>([^<]*)<\/\1>/g)].map(([, , value]) => value)
    expect(strings).toContain('/opt/my apps/mirror/bin/run.js')
    expect(strings).toContain('MIRROR_CACHE_PORT')
    const open: string[] = []
    for (const [, closing, tag, empty] of text.matchAll(/<(\/?)([a-zA-Z]+)[^<>]*?(\/?)>/g)) {
      if (closing) expect(open.pop()).toBe(tag)
      else if (!empty) open.push(tag!)
    }
    expect(open).toEqual([])
  })

  test.each(['compose', 'k8s'] as const)('%s names the settings that it does not take over', async (name) => {
    expect(await render(name)).not.toContain('NOT taken over')
    await writeFile(
      join(home, 'mirror.yaml'),
      'upstreams: {docker.io: {url: "https://cr.corp"}}\ncache: {tagFreshness: 1m}',
    )
    const text = await render(name)
    expect(text).toMatch(/^# NOT taken over from your settings: cache\.tagFreshness, upstreams\.\n/)
    // A mount below /data would create folders of root there.
    expect(text).toContain('/etc/mirror/mirror.yaml')
    expect(text).not.toContain('/data/home/mirror.yaml')
  })

  test.each(['systemd', 'launchd'] as const)('%s says where it goes, and not that mirror wrote it', async (name) => {
    const text = await render(name)
    expect(text).toContain(name === 'systemd' ? '~/.config/systemd/user/mirror.service' : '~/Library/LaunchAgents/')
    expect(text).not.toContain('Written by mirror')
  })

  test('an image refuses an invalid image name', async () => {
    await expect(render('compose', 'a"\nevil: true')).rejects.toMatchObject({ exit: 2 })
  })
})
