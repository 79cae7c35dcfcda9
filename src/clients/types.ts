import { exitCode, MirrorError } from '../lib/errors.ts'
import type { HostAlias } from '../lib/network.ts'
import type { CommandEnvironment, RunCommand } from '../lib/process.ts'

/** Lists the programs that mirror can configure. */
export const clientNames = [
  'docker',
  'podman',
  'containerd',
  'kind',
  'k3d',
  'k3s',
  'minikube',
  'buildkit',
  'kaniko',
  'testcontainers',
  'skaffold',
  'tilt',
] as const
export type ClientName = (typeof clientNames)[number]

/** Describes the mirror from the view of one client. */
export interface MirrorForClient {
  /** Holds the cache's URL, without a slash at its end: `http://127.0.0.1:5055`. */
  readonly cache: string
  /** Holds the URL of the registry for pushed images; undefined when it is disabled, or the client cannot reach it. */
  readonly registry: string | undefined
  /** Holds the CA certificates that the client must trust, as PEM; undefined when it needs none. */
  readonly ca?: string | undefined
  /** Holds the registries to mirror, `docker.io` first. */
  readonly registries: readonly string[]
  /** Holds the upstream for requests that name none. */
  readonly defaultUpstream: string
  /** Is true when the client falls back to the origin while the mirror fails; false only for clients that support it. */
  readonly fallback: boolean
}

/** Holds the change of one file. */
export interface FileChange {
  readonly path: string
  /** Is undefined when the file does not exist. */
  readonly before: string | undefined
  /** Is undefined when the file is removed. */
  readonly after: string | undefined
}

/** Holds a planned configuration; nothing is written yet. */
export interface ConfigPlan {
  /** Holds the files whose content changes. */
  readonly changes: readonly FileChange[]
  /** Findings and decisions, a sentence each. */
  readonly notes: readonly string[]
  /** Holds the steps that are left to the user: a command, or a setting. */
  readonly todo: readonly string[]
  /** Holds the text for stdout: flags, a cluster file. */
  readonly output?: string
  /** Lists the registries for which the user's files keep the client from the mirror, each with the reason and what changes it. */
  readonly leftOut?: readonly { readonly registry: string; readonly why: string }[]
}

/** Holds the plan for a client whose settings are only printed. */
export type PrintedConfig = Omit<ConfigPlan, 'changes'>

/** Lists the files and folders to read before planning; absolute paths. */
export interface TargetInputs {
  readonly files: readonly string[]
  /** Holds the folders, read with all files below them. */
  readonly trees: readonly string[]
}

/** Describes the machine whose clients are configured. */
export interface Machine {
  readonly platform: string
  readonly env: Readonly<Record<string, string | undefined>>
  /** Holds the user's home folder, or the folder of `--root`. */
  readonly home: string
  /** Is `/`, or the folder of `--root`. */
  readonly root: string
  /** Is true with `--root`: then nothing is detected, and no program or daemon is contacted. */
  readonly detached: boolean
  readonly cwd: string
  /** Holds the surroundings that root was given, before paths of other users were removed; absent where none was. */
  readonly callers?: CommandEnvironment | undefined
  /** Names mirror's state folder. */
  readonly stateDir: string
  /** Holds the folders of the records; `stateDir` when absent. */
  readonly records?: RecordFolders
  readonly runCommand: RunCommand
}

/** Holds the user's options for a client; mirror detects an undefined one. */
export interface ClientOptions {
  readonly scope: 'user' | 'system' | undefined
  readonly clientVersion: string | undefined
  readonly imageStore: 'classic' | 'containerd' | undefined
  /** Holds the user's file to merge into, instead of the default path. */
  readonly file: string | undefined
  /** Names a running cluster to configure. */
  readonly cluster: string | undefined
}

/** Configures one client. */
export interface ClientAdapter {
  readonly client: ClientName
  /** Describes the configuration that it writes, for a list: `Docker: daemon.json, or a folder per registry`. */
  readonly summary: string
  /** Finds the client on this machine (`podman 4.3.1`); undefined when it is not installed. Fast, and never throws. */
  find(machine: Machine): Promise<string | undefined>
  /**
   * Lists the targets on this machine, the likeliest first. For a client that is not installed, this is the default target, with a
   * note in its plan that the version is a guess. Throws MirrorError when there is nothing sensible to write.
   */
  findTargets(machine: Machine, options: ClientOptions): Promise<ConfigTarget[]>
  /**
   * Creates the preconditions of the mirror's address, for example a network. Not called on a dry run, nor with a given address.
   * Throws MirrorError.
   */
  prepare?(machine: Machine, options: ClientOptions): Promise<void>
  /**
   * Renders the text for stdout in place of a document after a failure, so that the program at the other end of the pipe fails, with
   * the reason if it can show one. Absent for clients whose documents are not piped; undefined when no document was requested.
   */
  renderFailure?(failure: ConfigureFailure): string | undefined
  /** Restores a target from its recorded details. It contacts no program, so that undo works after the client was uninstalled. */
  restoreTarget(machine: Machine, details: ConfigTargetDetails): ConfigTarget
}

/** Describes the failure to make a document for stdout. */
interface ConfigureFailure {
  /** Explains the failure in one line. */
  readonly reason: string
  readonly exit: number
  /** Is true when a running cluster was requested, for which no document is printed. */
  readonly isCluster: boolean
}

/** Holds the details that restore a target; stored as JSON in its record. */
export type ConfigTargetDetails = Readonly<Record<string, string>>

/** Describes one configuration of a client: its files, their location, and the operations on them. */
export interface ConfigTarget {
  /** Identifies the target among the client's, and stays the same across runs: `system`, `user`, `cluster dev`. */
  readonly id: string
  /** Describes the target in a list to choose from: `system (/etc/docker)`. */
  readonly title: string
  readonly details: ConfigTargetDetails
  readonly location: ClientLocation
  readonly files: FilePort
  /** Is true when all of its files are in mirror's state folder, so that they are written without confirmation. */
  readonly isOwn?: true
  /** Is true when the client reads the address from its files at each pull, so that a new address takes effect at once. */
  readonly readAtEachPull?: true
  /** Resolves to true for a cluster that was deleted; to false when it is only stopped, and when unknown. */
  isDeleted?(): Promise<boolean>
  /** Lists the files to read before `plan` and `strip`. */
  readonly inputs: TargetInputs
  /** Plans the configuration. Pure. Throws MirrorError (usage) for a file that cannot be changed safely. */
  plan(mirror: MirrorForClient, files: FilesSnapshot): ConfigPlan
  /** Removes mirror's keys from files that the user has changed since. Pure. `mirror`: the addresses that were written. */
  strip(mirror: { readonly cache: string; readonly registry: string | undefined }, files: FilesSnapshot): FileChange[]
  /** Validates the new files by the client's own program. Throws MirrorError (usage) with its output. */
  validate?(changes: readonly FileChange[]): Promise<void>
  /**
   * Runs the required step after a write or undo of these files that needs no confirmation, for example a restart of containerd in
   * a node. Throws MirrorError.
   */
  completeWrite?(paths: readonly string[]): Promise<void>
  /** Makes the client read its files again; absent when it does so by itself, or when mirror cannot. */
  readonly reload?: ClientReload
  /**
   * Observes the current state of the client and its files. It changes nothing, and throws no error that a user could fix. Absent for
   * clients that cannot be observed. `since`: when mirror wrote the files; undefined when unknown.
   */
  observe?(mirror: { readonly cache: string; readonly since?: string | undefined }): Promise<Observation>
  /**
   * Finds known faults in the client's files, which it does not report itself. Pure. `cache`: the address that the client should have;
   * undefined when unknown. Absent for clients whose files have no known faults.
   */
  inspect?(cache: string | undefined, files: FilesSnapshot): readonly Finding[]
  /**
   * Finds by the files whether a pull asks the mirror first, and which file decides about that. Pure. Absent for clients whose files
   * need no interpretation; undefined when no file decides.
   */
  findRoute?(cache: string, image: string, files: FilesSnapshot): ClientRoute | undefined
  /** Lists the user's steps until the client has applied an undo of these files without `reload`; absent when there are none. */
  listUndoSteps?(paths: readonly string[]): string[]
  /**
   * Pulls an image by the client itself, and removes it again. `failed`: the client's error output. Absent for clients that cannot run
   * a pull from this machine.
   */
  pull?(image: string): Promise<{ readonly failed: string | undefined }>
  /**
   * Lists likely causes of a pull that bypassed the mirror, the likeliest first, each with the command that fixes it. Those of
   * `observe` take precedence.
   */
  readonly reasons: readonly Reason[]
}

/** Describes where a client looks for an image first. */
export interface ClientRoute {
  readonly viaMirror: boolean
  /** Names the file and the line that decide: `/etc/containers/registries.conf:12`. */
  readonly where: string
  /** Names the image at its origin, which may be another than in its name: `registry.corp.example/hub/library/alpine`. */
  readonly image: string
}

/** Describes a likely cause of a pull that bypassed the mirror. */
export interface Reason {
  readonly why: string
  /** Holds the command that fixes it. */
  readonly fix: string
  /** Is true when it is possible only if the files differ from those that mirror wrote for the running mirror. */
  readonly isUnconfigured?: true
}

/** Describes a known fault in the files of a client. */
export interface Finding {
  /** Names the fault: `hosts.capability`. Its check has the id `clients.hosts.capability`. */
  readonly fault: string
  /** Is `fail` for a fault by which pulls bypass the mirror, or fail. */
  readonly state: 'warn' | 'fail'
  /** Names the file, and the node that has it; absent where the client has one file. */
  readonly where?: string
  readonly saw: string
  /**
   * Is `configure` when the fault is in a file that mirror wrote, so that `mirror configure` of this target writes it again; a command
   * that mends the fault as it stands; or an advice.
   */
  readonly mend: 'configure' | { readonly command: string } | { readonly advice: string }
}

/** Describes the observed state of a client. */
export interface Observation {
  /** Is true when the running client uses the mirror; undefined when unknown. */
  readonly inUse: boolean | undefined
  /** Holds the error of the client's own program, by which its pulls fail, in one sentence; absent without one. */
  readonly failure?: string
  /** Lists the findings, a sentence each: `docker info (Docker 20.10.24, classic image store) lists no mirror.` */
  readonly saw: readonly string[]
  /** Lists pulls that bypass the mirror although the client uses it; absent without any. */
  readonly bypasses?: readonly Reason[]
  /** Lists likely causes that fit the findings. */
  readonly reasons: readonly Reason[]
  /** Lists the steps until a client with the right files uses the mirror. */
  readonly todo: readonly string[]
}

/** Makes a client read its files again, by a reload or a restart. */
export interface ClientReload {
  /** Holds the yes-or-no question for the user: `Reload dockerd now (SIGHUP, no containers stop)?` */
  readonly question: string
  /** Holds the message afterwards: `Sent SIGHUP to dockerd (pid 812).` */
  readonly done: string
  /** Throws MirrorError. */
  run(): Promise<void>
  /**
   * Returns the state of the files during the reload of an undo, for a client that ignores missing keys. It also accepts files that
   * are already restored.
   */
  planInterim?(mirror: { readonly cache: string }, files: FilesSnapshot): FileChange[]
}

/** Holds the content of a file, and the attributes to keep when it is replaced. */
export interface FileState {
  readonly bytes: Uint8Array
  /** Holds the permission bits. */
  readonly mode: number
  readonly uid: number
  readonly gid: number
}

/** Access to a client's files on this machine, in a VM or in a container. Paths are absolute there. */
export interface FilePort {
  /** Reads a file; undefined when absent. Throws the system error of an unreadable one. */
  read(path: string): Promise<FileState | undefined>
  /** Lists the paths of all files below a folder, sorted; empty when there is no folder. */
  list(folder: string): Promise<string[]>
  /**
   * Writes a file atomically. A symbolic link stays, and its target is replaced. Returns the folders that it created, outermost first.
   */
  write(path: string, content: Uint8Array, attributes: Omit<FileState, 'bytes'> | undefined): Promise<string[]>
  /** Removes a file; of a symbolic link, its target. An absent file is not an error. */
  remove(path: string): Promise<void>
  /** Resolves to true when `write` can replace or create this file. */
  mayWrite(path: string): Promise<boolean>
  /** Describes, in a sentence, which attributes of an existing file a write cannot keep; undefined for none. Absent where it keeps all. */
  describeLoss?(path: string): Promise<string | undefined>
  /** Removes temporary files that a killed run of mirror has left beside this file; absent when it leaves none. */
  tidy?(path: string): Promise<void>
  /** Removes a folder if it is empty. */
  removeFolder(path: string): Promise<void>
}

/** Holds files that were read before planning. */
export class FilesSnapshot {
  readonly #files: ReadonlyMap<string, Uint8Array>

  /** Takes `files`: contents by absolute path, without absent files. */
  constructor(files: ReadonlyMap<string, Uint8Array>) {
    this.#files = files
  }

  has(path: string): boolean {
    return this.#files.has(path)
  }

  /** Returns the paths of all files, sorted. */
  get paths(): string[] {
    return [...this.#files.keys()].toSorted()
  }

  /**
   * Returns the text of a file, with its byte order mark and line ends; undefined when absent. Throws MirrorError (usage) for bytes
   * that are not UTF-8, because they could not be restored.
   */
  getText(path: string): string | undefined {
    const bytes = this.#files.get(path)
    if (bytes === undefined) return undefined
    try {
      return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes)
    } catch (cause) {
      if (!(cause instanceof TypeError)) throw cause
      throw new MirrorError(`${path} is not UTF-8 text, so it was left unchanged.`, { exit: exitCode.usage, cause })
    }
  }

  /** Returns the snapshot after these changes. */
  with(changes: readonly FileChange[]): FilesSnapshot {
    const files = new Map(this.#files)
    for (const { path, after } of changes) {
      if (after === undefined) files.delete(path)
      else files.set(path, new TextEncoder().encode(after))
    }
    return new FilesSnapshot(files)
  }

  /** Returns the change of one file; empty when the text is the same. */
  change(path: string, after: string | undefined): FileChange[] {
    const before = this.getText(path)
    return before === after ? [] : [{ path, before, after }]
  }
}

/** Locates a client, which decides how it reaches this machine's mirror. */
export type ClientLocation =
  /** Is on this machine, with its loopback network. */
  | { readonly in: 'host' }
  /** Is in a virtual machine that has a name for this one: `host.docker.internal`. */
  | { readonly in: 'vm'; readonly what: string; readonly hostName: HostAlias }
  /** Is in containers of a Docker network; `hostName`: their name for this machine when their engine is in a virtual one. */
  | { readonly in: 'network'; readonly what: string; readonly network: string; readonly hostName?: HostAlias }
  /** Is in its own network namespace, without access to the host's loopback network. */
  | {
      readonly in: 'isolated'
      readonly what: string
      readonly why: string
      /** `PORT` in them is the port of the mirror. */
      readonly hints: readonly string[]
    }

/** Names the folders of records, each with `configured/` and `backups/`. */
export interface RecordFolders {
  /** Names this user's state folder; undefined for root when other users can write it. */
  readonly own: string | undefined
  /** Names the folder of system-wide records, which root writes and everyone reads; undefined when there is none. */
  readonly system: string | undefined
  /** Is true when this process runs as root. */
  readonly isRoot: boolean
}
