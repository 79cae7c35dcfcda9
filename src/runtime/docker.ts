/**
 * The Docker engine, as far as a mirror cares: where containers of a network can reach this machine. A question throws what keeps
 * this process from asking (no file descriptor, no memory): that says nothing of the engine.
 */
export interface Docker {
  /** Whether an engine answers. */
  ping(): Promise<boolean>
  /**
   * The gateway addresses, IPv4 and IPv6 literals, of the bridge networks with this name. Undefined when the engine did not say:
   * it is not there, or failed to answer.
   */
  networkGateways(name: string): Promise<string[] | undefined>
  /**
   * Calls back once at first, and whenever networks may have changed: one came or went, the engine came or went. Ends when
   * the signal aborts; an engine that is absent is waited for.
   */
  watchNetworks(onChange: () => void, signal: AbortSignal): Promise<void>
}
