/** Colours for a person; without them, the text as it is. */
export interface Paint {
  readonly bold: Coat
  readonly dim: Coat
  readonly green: Coat
  readonly yellow: Coat
  readonly red: Coat
}

export type Coat = (text: string) => string

/** Whether a stream wants colours. https://no-color.org, and FORCE_COLOR as Node reads it. */
export function wantsColor(stream: { isTTY?: boolean }, env: Readonly<Record<string, string | undefined>>): boolean {
  if (env['NO_COLOR']) return false
  if (env['FORCE_COLOR'] !== undefined) return env['FORCE_COLOR'] !== '0' && env['FORCE_COLOR'] !== 'false'
  return stream.isTTY === true && env['TERM'] !== 'dumb'
}

export function createPaint(inColor: boolean): Paint {
  const coat =
    (on: number, off: number): Coat =>
    (text) =>
      inColor && text !== '' ? `\x1b[${on}m${text}\x1b[${off}m` : text
  return { bold: coat(1, 22), dim: coat(2, 22), green: coat(32, 39), yellow: coat(33, 39), red: coat(31, 39) }
}
