import type { ConfigPlan, MirrorForClient } from './client-config.ts'
import { registryName } from './registry-name.ts'

/** Tilt finds the registry by the ConfigMap in the cluster; in others the Tiltfile names it. */
export function planTilt({ registry }: MirrorForClient): ConfigPlan {
  const base = 'Base images come through the mirror where the builder does: mirror configure docker.'
  if (registry === undefined)
    return {
      changes: [],
      notes: ['The mirror has no registry for pushed images: there is nothing to tell Tilt.', base],
      todo: [],
    }
  const name = registryName(registry)
  return {
    changes: [],
    notes: [
      `In clusters that say so (mirror configure kind --cluster NAME, k3d --cluster NAME) Tilt finds ${name} by itself.`,
      base,
    ],
    todo: ['in other clusters: put the line on stdout into the Tiltfile'],
    output: `default_registry('${name}')\n`,
  }
}
