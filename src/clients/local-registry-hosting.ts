import { parse, stringify } from 'yaml'
import { localRegistryName } from './node-hosts.ts'

/** Where Tilt, skaffold and others look up which registry a cluster pulls from. */
export const hostingConfigMap = { name: 'local-registry-hosting', namespace: 'kube-public' } as const

const ours = { 'app.kubernetes.io/managed-by': 'mirror' }

/**
 * The ConfigMap that tells a cluster's tools about the registry for pushed images: under its name on this machine for pushes and
 * for image names, under its address in the cluster's network for pods.
 * https://github.com/kubernetes/enhancements/tree/master/keps/sig-cluster-lifecycle/generic/1755-communicating-a-local-registry
 */
export function renderHosting(registry: string): string {
  const host = localRegistryName(registry)
  const hosting = { host, hostFromContainerRuntime: host, hostFromClusterNetwork: new URL(registry).host }
  return renderConfigMap({ metadata: { labels: ours }, data: { 'localRegistryHosting.v1': stringify(hosting) } })
}

/** A ConfigMap as a cluster tells it, without what the cluster itself keeps about it. */
export function plainConfigMap(yaml: string): string {
  return renderConfigMap(parse(yaml) as ConfigMap)
}

interface ConfigMap {
  readonly metadata?: { readonly labels?: Readonly<Record<string, string>> }
  readonly data?: Readonly<Record<string, string>>
}

function renderConfigMap({ metadata, data }: ConfigMap): string {
  const labels = metadata?.labels
  const all = { ...hostingConfigMap, ...(labels && { labels }) }
  return stringify({ apiVersion: 'v1', kind: 'ConfigMap', metadata: all, data: data ?? {} }, { lineWidth: 0 })
}

/** Whether the ConfigMap is one of ours, and not of another tool's registry. */
export function isOurHosting(text: string): boolean {
  return text.includes('app.kubernetes.io/managed-by: mirror')
}
