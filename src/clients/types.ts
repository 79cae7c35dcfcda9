import { exitCode, MirrorError } from '../lib/errors.ts'
import type { HostAlias } from '../lib/network.ts'
import type { RunCommand } from '../lib/process.ts'

/** The programs that mirror can configure. */
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

/** The mirror from the view of one client. */
export interface MirrorForClient {
  /** The cache's URL, without a slash at its end: `http://127.0.0.1:5055`. */
  readonly cache: string
  /** The URL of the registry for pushed images; undefined when it is disabled, or the client cannot reach it. */
  readonly registry: string | undefined
  /** The CA certificates that the client must trust, as PEM; undefined when it needs none. */
  readonly ca?: string | undefined
  /** The registries to mirror, `docker.io` first. */
  readonly registries: readonly string[]
  /** The upstream for requests that name none. */
  readonly defaultUpstream: string
  /** True when the client falls back to the origin while the mirror fails; false only for clients that support it. */
  readonly fallback: boolean
}

/** The change of one file. */
export interface FileChange {
  readonly path: string
  /** Undefined: the file does not exist. */
  readonly before: string | undefined
  /** Undefined: the file is removed. */
  readonly after: string | undefined
}

/** A planned configuration; nothing is written yet. */
export interface ConfigPlan {
  /** The files whose content changes. */
  readonly changes: readonly FileChange[]
  /** Findings and decisions, a sentence each. */
  readonly notes: readonly string[]
  /** Steps that are left to the user: a command, or a setting. */
  readonly todo: readonly string[]
  /** The text for stdout: flags, a cluster file. */
  readonly output?: string
}

/** The plan for a client whose settings are only printed. */
export type PrintedConfig = Omit<ConfigPlan, 'changes'>

/** The files and folders to read before planning; absolute paths. */
export interface TargetInputs {
  readonly files: readonly string[]
  /** Folders, read with all files below them. */
  readonly trees: readonly string[]
}

/** The machine whose clients are configured. */
export interface Machine {
  readonly platform: string
  readonly env: Readonly<Record<string, string | undefined>>
  /** The user's home folder, or the folder of `--root`. */
  readonly home: string
  /** `/`, or the folder of `--root`. */
  readonly root: string
  /** True with `--root`: then nothing is detected, and no program or daemon is contacted. */
  readonly detached: boolean
  readonly cwd: string
  /** mirror's state folder. */
  readonly stateDir: string
  /** The folders of the records; `stateDir` when absent. */
  readonly records?: RecordFolders
  readonly runCommand: RunCommand
}

/** The user's options for a client; mirror detects an undefined one. */
export interface ClientOptions {
  readonly scope: 'user' | 'system' | undefined
  readonly clientVersion: string | undefined
  readonly imageStore: 'classic' | 'containerd' | undefined
  /** The user's file to merge into, instead of the default path. */
  readonly file: string | undefined
  /** A running cluster to configure, by name. */
  readonly cluster: string | undefined
}

/** Configures one client. */
export interface ClientAdapter {
  readonly client: ClientName
  /** The configuration that it writes, for a list: `Docker: daemon.json, or a folder per registry`. */
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

/** The failure to make a document for stdout. */
interface ConfigureFailure {
  /** One line. */
  readonly reason: string
  readonly exit: number
  /** True when a running cluster was requested, for which no document is printed. */
  readonly isCluster: boolean
}

/** The details that restore a target; stored as JSON in its record. */
export type ConfigTargetDetails = Readonly<Record<string, string>>

/** One configuration of a client: its files, their location, and the operations on them. */
export interface ConfigTarget {
  /** Unique among the client's targets, and stable across runs: `system`, `user`, `cluster dev`. */
  readonly id: string
  /** For a list to choose from: `system (/etc/docker)`. */
  readonly title: string
  readonly details: ConfigTargetDetails
  readonly location: ClientLocation
  readonly files: FilePort
  /** All of its files are in mirror's state folder, so they are written without confirmation. */
  readonly isOwn?: true
  /** The client reads the address from its files at each pull, so a new address takes effect at once. */
  readonly readAtEachPull?: true
  /** Resolves to true for a cluster that was deleted; to false when unknown. */
  isDeleted?(): Promise<boolean>
  /** The files to read before `plan` and `strip`. */
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
   * clients that cannot be observed.
   */
  observe?(mirror: { readonly cache: string }): Promise<Observation>
  /** Lists the user's steps until the client has applied an undo of these files without `reload`; absent when there are none. */
  listUndoSteps?(paths: readonly string[]): string[]
  /**
   * Pulls an image by the client itself, and removes it again. `failed`: the client's error output. Absent for clients that cannot run
   * a pull from this machine.
   */
  pull?(image: string): Promise<{ readonly failed: string | undefined }>
  /**
   * Likely causes of a pull that bypassed the mirror, the likeliest first, each with the command that fixes it. Those of `observe`
   * take precedence.
   */
  readonly reasons: readonly Reason[]
}

/** A likely cause of a pull that bypassed the mirror. */
export interface Reason {
  readonly why: string
  /** The command that fixes it. */
  readonly fix: string
  /** It is possible only when the files differ from those that mirror wrote for the running mirror. */
  readonly isUnconfigured?: true
}

/** The observed state of a client. */
export interface Observation {
  /** True when the running client uses the mirror; undefined when unknown. */
  readonly inUse: boolean | undefined
  /** The findings, a sentence each: `docker info (Docker 20.10.24, classic image store) lists no mirror.` */
  readonly saw: readonly string[]
  /** Likely causes that fit the findings. */
  readonly reasons: readonly Reason[]
  /** The steps until a client with the right files uses the mirror. */
  readonly todo: readonly string[]
}

/** A reload or restart that makes a client read its files again. */
export interface ClientReload {
  /** The yes-or-no question for the user: `Reload dockerd now (SIGHUP, no containers stop)?` */
  readonly question: string
  /** The message afterwards: `Sent SIGHUP to dockerd (pid 812).` */
  readonly done: string
  /** Throws MirrorError. */
  run(): Promise<void>
  /**
   * Returns the state of the files during the reload of an undo, for a client that ignores missing keys. It also accepts files that
   * are already restored.
   */
  planInterim?(mirror: { readonly cache: string }, files: FilesSnapshot): FileChange[]
}

/** The content of a file, and the attributes to keep when it is replaced. */
export interface FileState {
  readonly bytes: Uint8Array
  /** Permission bits. */
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
  /** Removes temporary files that a killed run of mirror has left beside this file; absent when it leaves none. */
  tidy?(path: string): Promise<void>
  /** Removes a folder if it is empty. */
  removeFolder(path: string): Promise<void>
}

/** A snapshot of files, read before planning. */
export class FilesSnapshot {
  readonly #files: ReadonlyMap<string, Uint8Array>

  /** `files`: contents by absolute path, without absent files. */
  constructor(files: ReadonlyMap<string, Uint8Array>) {
    this.#files = files
  }

  has(path: string): boolean {
    return this.#files.has(path)
  }

  /** The paths of all files, sorted. */
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

/** The location of a client, which decides how it reaches this machine's mirror. */
export type ClientLocation =
  /** On this machine, with its loopback network. */
  | { readonly in: 'host' }
  /** In a virtual machine that has a name for this one: `host.docker.internal`. */
  | { readonly in: 'vm'; readonly what: string; readonly hostName: HostAlias }
  /** In containers of a Docker network; `hostName`: their name for this machine when their engine is in a virtual one. */
  | { readonly in: 'network'; readonly what: string; readonly network: string; readonly hostName?: HostAlias }
  /** In its own network namespace, without access to the host's loopback network. */
  | { readonly in: 'isolated'; readonly what: string; readonly why: string; readonly hints: readonly string[] }

/** The folders of records, each with `configured/` and `backups/`. */
export interface RecordFolders {
  /** This user's state folder; undefined for root when other users can write it. */
  readonly own: string | undefined
  /** The folder of system-wide records, which root writes and everyone reads; undefined when there is none. */
  readonly system: string | undefined
  /** True when this process runs as root. */
  readonly isRoot: boolean
}
