import type { Paint } from './paint.ts'
import type { Prompt } from './prompt.ts'

/** How a dialog speaks with its user. */
export interface Talk {
  /** Data, to stdout. */
  print(text: string): void
  /** A result in words, to stdout, whose commands are written as the user calls them. */
  report(text: string): void
  printJson(value: unknown): void
  /** Talk, to stderr. */
  say(text: string): void
  /** For stdout, and for stderr. */
  readonly paint: Paint
  readonly paintAside: Paint
  /** Undefined where nobody could answer. */
  readonly prompt: Prompt | undefined
}
