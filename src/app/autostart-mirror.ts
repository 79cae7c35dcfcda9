import { join } from 'node:path'
import type { Config } from '../config/config.ts'
import type { MirrorPaths, Surroundings } from '../config/paths.ts'
import { settingVariables } from '../config/read-environment.ts'
import { packageRoot } from '../lib/package-root.ts'
import { runCommand } from '../lib/run-command.ts'
import { createAutostart, type Autostart } from '../runtime/autostart.ts'
import type { AutostartSpec } from '../runtime/autostart-file.ts'
import { serveArguments } from '../runtime/serve-arguments.ts'

/** The way this machine starts things. Throws a MirrorError (exit 4) on a platform that has none. */
export function autostartOf({ platform, env, homedir }: Surroundings): Autostart {
  const templates = join(packageRoot(), 'templates')
  return createAutostart({ platform, env, homedir, templates, runCommand })
}

/** What is to be started: the server with the settings of this very moment. */
export function autostartSpec(program: string, surroundings: Surroundings, paths: MirrorPaths): AutostartSpec {
  const { env } = surroundings
  const places = {
    ...(env['MIRROR_HOME'] && { MIRROR_HOME: paths.stateDir.replace(/[/\\]state$/, '') }),
    ...(paths.configFileNamed && { MIRROR_CONFIG: paths.configFile }),
    ...(env['MIRROR_DATA'] && { MIRROR_DATA: paths.dataDir }),
  }
  const kept = [...settingVariables(), ...sessionVariables].flatMap((name) => (env[name] ? [[name, env[name]]] : []))
  return {
    command: [process.execPath, ...serveArguments(program)],
    env: { ...(Object.fromEntries(kept) as Record<string, string>), ...places },
    logFile: paths.logFile,
  }
}

/** What the user has to know about a start without their shell. */
export function autostartWarnings(config: Config): string[] {
  return Object.entries(config.upstreams).flatMap(([host, { credentials }]) =>
    credentials.from === 'password-env'
      ? [
          `The variable ${credentials.passwordEnv} (password for ${host}) will not be there after a reboot: use passwordFile`,
        ]
      : [],
  )
}

// What a service is not given, and what the way to upstreams and to Docker depends on.
const sessionVariables = [
  'PATH',
  'XDG_CONFIG_HOME',
  'XDG_DATA_HOME',
  'XDG_STATE_HOME',
  'DOCKER_CONFIG',
  'DOCKER_CONTEXT',
  'DOCKER_HOST',
  ...['HTTP_PROXY', 'HTTPS_PROXY', 'NO_PROXY', 'ALL_PROXY'].flatMap((name) => [name, name.toLowerCase()]),
]
