import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { loadConfig } from '../config/load.ts'
import { mirrorPaths, type Surroundings } from '../config/paths.ts'
import { MirrorError, exitCode } from '../lib/errors.ts'
import { renderLaunchAgent, renderSystemdUnit } from '../runtime/autostart-file.ts'
import { localImage } from '../runtime/container-image.ts'
import { autostartSpec } from './autostart-mirror.ts'
import { containerPorts } from './container/container-config.ts'

export type TemplateName = 'compose' | 'systemd' | 'launchd' | 'caddy' | 'k8s'

export interface TemplateRequest {
  readonly name: TemplateName
  readonly surroundings: Surroundings
  /** bin/run.js */
  readonly program: string
  /** The folder of the package's templates. */
  readonly templates: string
  /** For the templates that run an image. */
  readonly image: string | undefined
}

/** A file that runs the mirror, or stands in front of it, with the ports and sizes of the configuration. */
export async function renderTemplate(request: TemplateRequest): Promise<string> {
  const { name, surroundings, program } = request
  const paths = mirrorPaths(surroundings)
  const config = await loadConfig({ ...surroundings, paths })
  const read = (file: string) => readFile(join(request.templates, file), 'utf8')
  const spec = () => autostartSpec(program, surroundings, paths, { secrets: false })
  switch (name) {
    case 'systemd':
      return renderSystemdUnit(await read('systemd/mirror.service'), spec())
    case 'launchd':
      return renderLaunchAgent(await read('launchd/dev-mirror.plist'), spec())
    case 'caddy':
    case 'compose':
    case 'k8s': {
      const ports = containerPorts(config)
      const { maxSize } = config.cache
      return fill(await read(files[name]), {
        IMAGE: checkedImage(request.image ?? localImage),
        MAX_SIZE: `${maxSize}B`,
        // Pushed images, and what is under way, need room beside the cache.
        STORAGE: String(maxSize === 0 ? 100 * 1024 ** 3 : Math.ceil(maxSize * 1.25)),
        CACHE_PORT: String(ports.cache.inside),
        REGISTRY_PORT: String(ports.registry?.inside ?? 5001),
        ADMIN_PORT: String(ports.admin.inside),
      })
    }
  }
}

const files = { caddy: 'Caddyfile', compose: 'compose.yaml', k8s: 'k8s.yaml' } as const

function fill(template: string, values: Readonly<Record<string, string>>): string {
  return template.replaceAll(/@([A-Z_]+)@/g, (placeholder, name: string) => values[name] ?? placeholder)
}

function checkedImage(name: string): string {
  if (/^[\w.:/@-]+$/.test(name)) return name
  throw new MirrorError(`${JSON.stringify(name)} is not the name of an image.`, { exit: exitCode.usage })
}
