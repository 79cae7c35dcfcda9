import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import type { Command } from '@oclif/core/command'
import { Config } from '@oclif/core/config'
import type { Manifest, PJSON, Plugin } from '@oclif/core/interfaces'
import { findPackageRoot } from '../lib/fs.ts'
import { getProgramName, isExit, dropForeignPaths, watchOutput, writeFailure } from './base-command.ts'
import { parseCommandLine } from './help.ts'
import { createColors, wantsColor } from './terminal.ts'

/** Runs the command of this process's arguments. */
export async function main(): Promise<void> {
  watchOutput(process)
  const plugin = readRootPlugin(findPackageRoot())
  try {
    dropForeignPaths(process)
    await run(plugin)
  } catch (error) {
    process.exit(isExit(error) ? (error.oclif?.exit ?? 0) : writeFailure(error, plugin))
  }
}

async function run(plugin: Plugin): Promise<void> {
  const topics = plugin.topics.map(({ name }) => name)
  const line = parseCommandLine(process.argv.slice(2), { commands: plugin.commandIDs, topics })
  if (line.kind === 'version') {
    process.stdout.write(`${describeVersion(plugin)}\n`)
  } else if (line.kind === 'help') {
    const { renderHelp } = await import('./help.ts')
    const { getColumns } = await import('./terminal.ts')
    const { commands } = plugin
    const program = {
      name: getProgramName(process, plugin).name,
      description: plugin.pjson['description'] ?? '',
      version: describeVersion(plugin),
      commands,
      topics: plugin.topics,
    }
    const style = {
      width: getColumns(process.stdout) ?? 80,
      colors: createColors(wantsColor(process.stdout, process.env)),
    }
    process.stdout.write(`${renderHelp(program, line.of, style)}\n`)
  } else {
    const { root, pjson, name } = plugin
    const config = await Config.load({ root, pjson, plugins: new Map([[name, plugin]]) })
    await config.runCommand(line.id, [...line.args], config.findCommand(line.id))
  }
}

/** Renders the version: `dev-mirror/1.0.0 linux-x64 node-v20.19.0`. */
function describeVersion({ name, version }: Plugin): string {
  return `${name}/${version} ${process.platform}-${process.arch} node-${process.version}`
}

/**
 * Reads this package from `package.json` and the manifest of the build, in the framework's form. The framework itself would search
 * for plugins, their commands and their configuration; this program has only its own.
 */
export function readRootPlugin(root: string): Plugin {
  const pjson = readJson(join(root, 'package.json')) as PJSON
  const manifest = readJson(join(root, 'oclif.manifest.json')) as Manifest

  async function load({ id, relativePath }: Command.Cached): Promise<Command.Class> {
    const file = pathToFileURL(join(root, ...relativePath!)).href
    const { default: command } = (await import(file)) as { default: Command.Class }
    command.id = id
    command.plugin = plugin
    return command
  }

  const plugin: Plugin = {
    _base: `${pjson.name}@${pjson.version}`,
    alias: pjson.name,
    name: pjson.name,
    version: pjson.version,
    root,
    pjson,
    type: 'core',
    moduleType: 'module',
    isRoot: true,
    valid: true,
    hasManifest: true,
    hooks: {},
    options: { root },
    topics: Object.entries(pjson.oclif.topics ?? {}).map(([name, topic]) => ({ ...topic, name })),
    commandIDs: Object.keys(manifest.commands),
    commands: Object.values(manifest.commands).map((command) => ({ ...command, load: () => load(command) })),
    commandsDir: undefined,
    findCommand: (id: string) => load(manifest.commands[id]!),
    load: () => Promise.resolve(),
  }
  return plugin
}

function readJson(file: string): unknown {
  return JSON.parse(readFileSync(file, 'utf8'))
}
