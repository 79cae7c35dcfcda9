import type { ConfigPlan, MirrorForClient } from './client-config.ts'
import { registryName } from './registry-name.ts'

/** skaffold finds the registry by the ConfigMap in the cluster; in others it is told by its environment. */
export function planSkaffold({ registry }: MirrorForClient): ConfigPlan {
  const base = 'Base images come through the mirror where the builder does: mirror configure docker, or kaniko.'
  if (registry === undefined)
    return {
      changes: [],
      notes: ['The mirror has no registry for pushed images: there is nothing to tell skaffold.', base],
      todo: [],
    }
  const name = registryName(registry)
  return {
    changes: [],
    notes: [
      `In clusters that say so (mirror configure kind --cluster NAME, k3d --cluster NAME) skaffold finds ${name} by itself.`,
      base,
    ],
    todo: [`in other clusters: skaffold config set default-repo ${name}, or the environment variable on stdout`],
    output: `SKAFFOLD_DEFAULT_REPO=${name}\n`,
  }
}
