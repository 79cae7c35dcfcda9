import { join } from 'node:path'
import type { Config } from '../config/config.ts'
import type { MirrorPaths, Surroundings } from '../config/paths.ts'
import { packageRoot } from '../lib/package-root.ts'
import { runCommand } from '../lib/process.ts'
import { createAutostart, type Autostart } from '../daemon/autostart.ts'
import type { AutostartSpec } from '../runtime/autostart-file.ts'
import { serveArguments } from '../runtime/serve-arguments.ts'
import { inheritedVariables } from './inherited-variables.ts'

/** The way this machine starts things. Throws a MirrorError (exit 4) on a platform that has none. */
export function autostartOf({ platform, env, homedir }: Surroundings): Autostart {
  const templates = join(packageRoot(), 'templates')
  return createAutostart({ platform, env, homedir, templates, runCommand })
}

/**
 * What is to be started: the server with the settings of this very moment. `secrets`: with what of them is not for everybody's
 * eyes; not for a file that is printed.
 */
export function autostartSpec(
  program: string,
  surroundings: Surroundings,
  paths: MirrorPaths,
  { secrets }: { readonly secrets: boolean },
): AutostartSpec {
  const { env, cwd } = surroundings
  const places = {
    ...(env['MIRROR_HOME'] && { MIRROR_HOME: paths.stateDir.replace(/[/\\]state$/, '') }),
    ...(paths.configFileNamed && { MIRROR_CONFIG: paths.configFile }),
    ...(env['MIRROR_DATA'] && { MIRROR_DATA: paths.dataDir }),
  }
  const inherited = inheritedVariables(env, cwd)
  const kept = Object.entries(inherited.kept).filter(([name]) => secrets || !inherited.secrets.includes(name))
  return {
    command: [process.execPath, ...serveArguments(program)],
    env: { ...Object.fromEntries(kept), ...places },
    logFile: paths.logFile,
  }
}

/** What the user has to know about a start without their shell. `file`: what starts the mirror. */
export function autostartWarnings(config: Config, { env, cwd }: Surroundings, file: string): string[] {
  const { secrets, dropped } = inheritedVariables(env, cwd)
  const passwords = Object.entries(config.upstreams).flatMap(([host, { credentials }]) =>
    credentials.from === 'password-env'
      ? [
          `The variable ${credentials.passwordEnv} (password for ${host}) will not be there after a reboot: use passwordFile`,
        ]
      : [],
  )
  return [
    ...passwords,
    ...(secrets.length === 0 ? [] : [`${file} holds ${listOf(secrets)}; only you can read it`]),
    ...Array.from(dropped, ([name, why]) => `${name} will not be there after a reboot: ${why}`),
    ...(env['NODE_TLS_REJECT_UNAUTHORIZED'] === '0'
      ? ['NODE_TLS_REJECT_UNAUTHORIZED will not be there after a reboot: name the CA in upstreams.<host>.ca']
      : []),
  ]
}

const listOf = (names: readonly string[]) => new Intl.ListFormat('en').format(names)
