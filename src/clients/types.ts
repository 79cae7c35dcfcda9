import { exitCode, MirrorError } from '../lib/errors.ts'
import type { HostAlias } from '../lib/network.ts'
import type { RunCommand } from '../lib/process.ts'

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

/** The plan for a client whose settings are only printed. */
export type PrintedConfig = Omit<ConfigPlan, 'changes'>

/** The files and folders that a writer wants to see before it plans; absolute paths. */
export interface WantedFiles {
  readonly files: readonly string[]
  /** Folders, with everything below them. */
  readonly trees: readonly string[]
}

/** The machine whose clients are configured. */
export interface Machine {
  readonly platform: string
  readonly env: Readonly<Record<string, string | undefined>>
  /** The user's home folder, or the folder that `--root` put in its place. */
  readonly home: string
  /** `/`, or the folder that `--root` put in its place. */
  readonly root: string
  /** Whether `--root` was given: then nothing is detected and no program or daemon is spoken to. */
  readonly detached: boolean
  readonly cwd: string
  /** Our own state folder. */
  readonly stateDir: string
  /** Where it is written down what was configured; our own state folder when not given. */
  readonly records?: RecordFolders
  readonly runCommand: RunCommand
}

/** What the user said about the client; undefined is "find out". */
export interface ClientOptions {
  readonly scope: 'user' | 'system' | undefined
  readonly clientVersion: string | undefined
  readonly imageStore: 'classic' | 'containerd' | undefined
  /** A file of the user's to merge into, instead of the usual place. */
  readonly file: string | undefined
  /** A running cluster to configure, by name. */
  readonly cluster: string | undefined
}

/** One program and how it is told about a mirror. */
export interface ClientAdapter {
  readonly client: ClientName
  /** What it is that gets configured, for a list: `Docker: daemon.json, or a folder per registry`. */
  readonly summary: string
  /** What of it is on this machine (`podman 4.3.1`, `cluster dev`); undefined when there is nothing. Quick, and never throws. */
  find(machine: Machine): Promise<string | undefined>
  /**
   * Where it could be configured here, the likeliest first. Not installed is no failure: then it is the usual place, with a
   * note in the plan that the version is a guess. Throws MirrorError where there is nothing sensible to write.
   */
  targets(machine: Machine, options: ClientOptions): Promise<ConfigTarget[]>
  /**
   * Sees to what has to be there before the mirror's address can be known. Not on a dry run, nor when the address was given.
   * Throws MirrorError.
   */
  prepare?(machine: Machine, options: ClientOptions): Promise<void>
  /**
   * What stdout gets in place of a document that could not be made, so that the program it is piped into stops, with our reason
   * where it can show one. Absent for clients whose documents are not piped; undefined where none was asked for.
   */
  refusal?(failure: ConfigureFailure): string | undefined
  /** The place that `details` were written down for; talks to nobody, so that undo works when the client is gone. */
  recall(machine: Machine, details: ConfigTargetDetails): ConfigTarget
}

/** Why a document could not be printed. */
interface ConfigureFailure {
  /** One line. */
  readonly reason: string
  readonly exit: number
  /** A running cluster was to be configured, of which nothing is printed. */
  readonly isCluster: boolean
}

/** All that is needed to find a place again; JSON. */
export type ConfigTargetDetails = Readonly<Record<string, string>>

/** One place where a client keeps its configuration. */
export interface ConfigTarget {
  /** Tells it from the client's other places, and stays the same from run to run: `system`, `user`, `cluster dev`. */
  readonly id: string
  /** For a list to choose from: `system (/etc/docker)`. */
  readonly title: string
  readonly details: ConfigTargetDetails
  readonly location: ClientLocation
  readonly files: FilePort
  /** All of its files are our own, below our state folder: written without a question. */
  readonly ours?: true
  /** The client reads the address from its files at each pull: a new one needs nothing else. */
  readonly readAtEachPull?: true
  /** Whether the client is no more, a cluster that was deleted; false where nobody can say. */
  isGone?(): Promise<boolean>
  /** What has to be read before `plan` and `strip`. */
  readonly wants: WantedFiles
  /** Pure. Throws MirrorError (usage) for a file that cannot be changed safely. */
  plan(mirror: MirrorForClient, files: FilesNow): ConfigPlan
  /** Pure: takes our own keys out of files that the user has changed since; `mirror` is what was written then. */
  strip(mirror: { readonly cache: string; readonly registry: string | undefined }, files: FilesNow): FileChange[]
  /** Has the client itself look at what would be written. Throws MirrorError (usage) with what it says. */
  validate?(changes: readonly FileChange[]): Promise<void>
  /**
   * What a change of these files is nothing without, and nobody has to be asked about: after writing them, and after undoing.
   * Throws MirrorError.
   */
  settle?(paths: readonly string[]): Promise<void>
  /** How the client takes notice without a restart; absent where it does by itself. */
  readonly reload?: ClientReload
  /**
   * What the client and its files say at this moment of this mirror, as far as they can be asked. Changes nothing, and throws
   * nothing that a user could mend; absent where nobody can be asked.
   */
  observe?(mirror: { readonly cache: string }): Promise<Observation>
  /** What is left to the user until the client feels that these files were undone without `reload`; absent where nothing is. */
  afterUndo?(paths: readonly string[]): string[]
  /**
   * Pulls an image by the client itself, and removes it again. Resolves to what the client said when the pull failed; absent
   * where this client cannot be made to pull from here.
   */
  pull?(image: string): Promise<{ readonly failed: string | undefined }>
  /**
   * Why a pull may have gone past the mirror, the likeliest first, each with the command that mends it. `observe` knows better
   * where it is there.
   */
  readonly reasons: readonly Reason[]
}

export interface Reason {
  readonly why: string
  readonly fix: string
  /** It fits only where the files are not as mirror wrote them for the running mirror. */
  readonly isUnconfigured?: true
}

/** What was seen of a client. */
export interface Observation {
  /** Whether the running client goes to the mirror; undefined where it cannot be told. */
  readonly inUse: boolean | undefined
  /** A sentence each: `docker info (Docker 20.10.24, classic image store) names no mirror.` */
  readonly saw: readonly string[]
  /** What explains a pull that went past the mirror and fits what was seen. */
  readonly reasons: readonly Reason[]
  /** What it takes until a client with the right files goes to the mirror. */
  readonly todo: readonly string[]
}

export interface ClientReload {
  /** A question to be answered by yes: `Reload dockerd now (SIGHUP, no containers stop)?` */
  readonly question: string
  /** `Sent SIGHUP to dockerd (pid 812).` */
  readonly done: string
  /** Throws MirrorError. */
  run(): Promise<void>
  /**
   * Files as they have to be during the reload that undoes, where a key that is merely missing would be ignored; also of files
   * that were undone already.
   */
  interim?(mirror: { readonly cache: string }, files: FilesNow): FileChange[]
}

/** A file with what must survive its being replaced. */
export interface FileState {
  readonly bytes: Uint8Array
  /** Permission bits. */
  readonly mode: number
  readonly uid: number
  readonly gid: number
}

/** Where a client's files lie: on this machine, in a VM, in a container. Paths are absolute there. */
export interface FilePort {
  /** Undefined when there is no file; throws what the system says when it cannot be read. */
  read(path: string): Promise<FileState | undefined>
  /** The paths of all files below a folder, in order; none when there is no folder. */
  list(folder: string): Promise<string[]>
  /**
   * Puts the content in place, all of it or nothing of it; a symbolic link stays and what it points to is replaced.
   * Returns the folders it had to make, outermost first.
   */
  write(path: string, content: Uint8Array, attributes: Omit<FileState, 'bytes'> | undefined): Promise<string[]>
  /** What a symbolic link points to, not the link. No failure when it is gone already. */
  remove(path: string): Promise<void>
  /** Whether `write` may replace or make this file. */
  mayWrite(path: string): Promise<boolean>
  /** Takes away what a run of ours that was killed has left beside this file; absent where nothing can be left. */
  tidy?(path: string): Promise<void>
  /** Only if it is empty; no failure otherwise. */
  removeFolder(path: string): Promise<void>
}

/** Files as they are at this moment, read before anything is planned. */
export class FilesNow {
  readonly #files: ReadonlyMap<string, Uint8Array>

  /** By absolute path; a file that is not there is not in the map. */
  constructor(files: ReadonlyMap<string, Uint8Array>) {
    this.#files = files
  }

  has(path: string): boolean {
    return this.#files.has(path)
  }

  /** Every file that was read, in the order of their paths. */
  get paths(): string[] {
    return [...this.#files.keys()].toSorted()
  }

  /**
   * The text as it stands, with its byte order mark and line ends; undefined when there is no such file. Throws a MirrorError
   * (usage) for bytes that are no UTF-8: they could not be written back as they were.
   */
  text(path: string): string | undefined {
    const bytes = this.#files.get(path)
    if (bytes === undefined) return undefined
    try {
      return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes)
    } catch (cause) {
      if (!(cause instanceof TypeError)) throw cause
      throw new MirrorError(`${path} is not UTF-8 text, so it is left alone.`, { exit: exitCode.usage, cause })
    }
  }

  /** As they would be after these changes. */
  with(changes: readonly FileChange[]): FilesNow {
    const files = new Map(this.#files)
    for (const { path, after } of changes) {
      if (after === undefined) files.delete(path)
      else files.set(path, new TextEncoder().encode(after))
    }
    return new FilesNow(files)
  }

  /** The plan's change of one file; none when the text is what it was. */
  change(path: string, after: string | undefined): FileChange[] {
    const before = this.text(path)
    return before === after ? [] : [{ path, before, after }]
  }
}

/** Where a client lives, as far as it matters for reaching this machine's mirror. */
export type ClientLocation =
  /** Beside the mirror: its loopback is ours. */
  | { readonly in: 'host' }
  /** A virtual machine that has a name for this one: `host.docker.internal`. */
  | { readonly in: 'vm'; readonly what: string; readonly hostName: HostAlias }
  /** Containers of a Docker network; `hostName`: how they call this machine when their engine is in a virtual one. */
  | { readonly in: 'network'; readonly what: string; readonly network: string; readonly hostName?: HostAlias }
  /** A network namespace of its own that the host's loopback cannot be reached from. */
  | { readonly in: 'apart'; readonly what: string; readonly why: string; readonly hints: readonly string[] }

/** Where records lie: `configured/` and `backups/` in each folder. */
export interface RecordFolders {
  /** This user's state folder; undefined for root where others than root can write it. */
  readonly own: string | undefined
  /** For what root has configured for the whole machine: root writes it, everyone reads it. Undefined: there is none. */
  readonly system: string | undefined
  /** Whether we are root. */
  readonly isRoot: boolean
}
