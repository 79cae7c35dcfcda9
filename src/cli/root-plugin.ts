import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import type { Command } from '@oclif/core/command'
import type { Manifest, PJSON, Plugin } from '@oclif/core/interfaces'

/**
 * This package as the framework sees it, read from `package.json` and the manifest that the build has written. The framework
 * would find out the same by itself, with what it takes to look for plugins, their commands and their configuration; this
 * program has none but its own.
 */
export function rootPlugin(root: string): Plugin {
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
