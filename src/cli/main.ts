import { Config } from '@oclif/core/config'
import type { Plugin } from '@oclif/core/interfaces'
import { packageRoot } from '../lib/package-root.ts'
import { leaveOthersPlaces } from './as-root.ts'
import { calledAs } from './exit.ts'
import { readCommandLine } from './command-line.ts'
import { isExit, writeFailure } from './end-with.ts'
import { watchOutput } from './output.ts'
import { createPaint, wantsColor } from './paint.ts'
import { rootPlugin } from './root-plugin.ts'

/** Runs the command that the arguments of this process name. */
export async function main(): Promise<void> {
  watchOutput(process)
  const plugin = rootPlugin(packageRoot())
  try {
    leaveOthersPlaces(process)
    await run(plugin)
  } catch (error) {
    process.exit(isExit(error) ? (error.oclif?.exit ?? 0) : writeFailure(error, plugin))
  }
}

async function run(plugin: Plugin): Promise<void> {
  const topics = plugin.topics.map(({ name }) => name)
  const line = readCommandLine(process.argv.slice(2), { commands: plugin.commandIDs, topics })
  if (line.kind === 'version') {
    process.stdout.write(`${versionOf(plugin)}\n`)
  } else if (line.kind === 'help') {
    const { renderHelp } = await import('./help.ts')
    const { columnsOf } = await import('./terminal.ts')
    const { commands } = plugin
    const program = {
      name: calledAs(process, plugin).name,
      description: plugin.pjson['description'] ?? '',
      version: versionOf(plugin),
      commands,
      topics: plugin.topics,
    }
    const style = {
      width: columnsOf(process.stdout) ?? 80,
      paint: createPaint(wantsColor(process.stdout, process.env)),
    }
    process.stdout.write(`${renderHelp(program, line.of, style)}\n`)
  } else {
    const { root, pjson, name } = plugin
    const config = await Config.load({ root, pjson, plugins: new Map([[name, plugin]]) })
    await config.runCommand(line.id, [...line.args], config.findCommand(line.id))
  }
}

/** `dev-mirror/1.0.0 linux-x64 node-v20.19.0` */
function versionOf({ name, version }: Plugin): string {
  return `${name}/${version} ${process.platform}-${process.arch} node-${process.version}`
}
