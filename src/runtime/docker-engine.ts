/** What an engine says about itself, as far as its configuration is concerned. */
export interface DockerEngineInfo {
  /** `28.5.2` */
  readonly version: string
  /** `Docker Desktop`, `Debian GNU/Linux 12 (bookworm)` */
  readonly operatingSystem: string
  /** Of the machine that it runs on. */
  readonly hostName: string
  readonly imageStore: 'classic' | 'containerd'
  readonly isRootless: boolean
  /** Podman answers the same questions. */
  readonly isPodman: boolean
  /** As they are in use now. */
  readonly mirrors: readonly string[]
  /** Registries, and networks in CIDR form, that it asks without checking who answers. */
  readonly insecure: readonly string[]
}

/** A Docker engine that may be configured. */
export interface DockerEngine {
  /** Undefined when none answers within a few seconds. */
  info(): Promise<DockerEngineInfo | undefined>
  /**
   * Pulls an image with no credentials and removes it again. Resolves to what the engine said when it could not be pulled.
   * `timeoutMs` is for the pull.
   */
  tryPull(image: string, timeoutMs: number): Promise<{ readonly failed: string | undefined }>
}
