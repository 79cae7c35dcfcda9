export interface MemoryGroups {
  readonly folder: string
  readonly version: 1 | 2
}

export declare function findMemoryGroups(root?: string): MemoryGroups

export declare class MemoryGroup {
  constructor(groups: MemoryGroups, name: string, bytes: number)
  readonly wrapper: readonly string[]
  readonly kills: number
  remove(): Promise<void>
}
