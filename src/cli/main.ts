import { execute } from '@oclif/core/execute'
import { packageRoot } from '../lib/package-root.ts'
import { rootPlugin } from './root-plugin.ts'

/** Runs the command that the arguments of this process name. `development` has the framework say more of what goes wrong. */
export async function main({ development = false } = {}): Promise<void> {
  const plugin = rootPlugin(packageRoot())
  const { root, pjson, name } = plugin
  await execute({ development, loadOptions: { root, pjson, plugins: new Map([[name, plugin]]) } })
}
