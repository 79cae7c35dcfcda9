/** The programs that can be told about a mirror. */
export const clientNames = [
  'docker',
  'podman',
  'containerd',
  'kind',
  'kaniko',
  'buildkit',
  'k3d',
  'k3s',
  'minikube',
  'testcontainers',
  'skaffold',
  'tilt',
] as const
export type ClientName = (typeof clientNames)[number]

/** The mirror as one client sees it. */
export interface MirrorForClient {
  /** The cache's URL, without a slash at its end: `http://127.0.0.1:5055`. */
  readonly cache: string
  /** The URL of the registry for pushed images; undefined where there is none, or the client cannot reach it. */
  readonly registry: string | undefined
  /** The certificates that the client has to trust before it takes the mirror's, as PEM; undefined: it trusts that by itself. */
  readonly ca?: string | undefined
  /** The registries to mirror, `docker.io` first. */
  readonly registries: readonly string[]
  /** Which upstream the mirror asks when a request names none. */
  readonly defaultUpstream: string
  /** Whether the client may go to the origin when the mirror fails; false only where the client can be told so. */
  readonly fallback: boolean
}

/** What becomes of one file. */
export interface FileChange {
  readonly path: string
  /** Undefined: there is no such file. */
  readonly before: string | undefined
  /** Undefined: the file goes. */
  readonly after: string | undefined
}

/** What a writer wants to happen. Nothing in it has happened yet. */
export interface ConfigPlan {
  /** Only files whose content changes. */
  readonly changes: readonly FileChange[]
  /** What was found and decided, a sentence each. */
  readonly notes: readonly string[]
  /** What is left for the user to do: a command, or a setting to make. */
  readonly todo: readonly string[]
  /** What was asked for on stdout: flags, a cluster file. */
  readonly output?: string
}

/** The files and folders that a writer wants to see before it plans; absolute paths. */
export interface WantedFiles {
  readonly files: readonly string[]
  /** Folders, with everything below them. */
  readonly trees: readonly string[]
}
