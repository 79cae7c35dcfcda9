const [quote, backslash] = [0x22, 0x5c]
const [openList, closeList, openObject, closeObject] = [0x5b, 0x5d, 0x7b, 0x7d]

/** A line lists changes, and a change is flat but for what stands in the manifest as well. */
const deepestKept = 2
/** No text that a change needs is longer. */
const longestText = 4096
/** Bytes: some 200,000 changes. */
const longestResult = 32 * 1024 * 1024

/**
 * A line of a journal that is too long to be read as it is, because a manifest's links and annotations stand in it: the same
 * line without them. It takes the bytes as they come, and keeps what is needed.
 */
export class LongLine {
  #kept = Buffer.alloc(64 * 1024)
  #size = 0
  #depth = 0
  #isInText = false
  #isEscaped = false
  /** Where the text that is being read begins in what is kept. */
  #textAt = 0
  #isTextTooLong = false
  #isTooLong = false

  add(bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length && !this.#isTooLong;)
      at = this.#isInText ? this.#text(bytes, at) : this.#next(bytes, at)
  }

  /** What is left of the line; undefined when that is too long as well. */
  end(): string | undefined {
    return this.#isTooLong ? undefined : this.#kept.toString('utf8', 0, this.#size)
  }

  /** Goes on in a text up to its end; where to go on after it. */
  #text(bytes: Uint8Array, from: number): number {
    let at = from
    while (at < bytes.length && this.#isInText) {
      const byte = bytes[at++]
      if (this.#isEscaped) this.#isEscaped = false
      else if (byte === backslash) this.#isEscaped = true
      else if (byte === quote) this.#isInText = false
    }
    if (this.#depth > deepestKept) return at
    this.#isTextTooLong ||= this.#size - this.#textAt + at - from > longestText
    if (!this.#isTextTooLong) this.#keep(bytes.subarray(from, at))
    else {
      // An empty text stands for it.
      this.#size = this.#textAt + 1
      if (!this.#isInText) this.#keepByte(quote)
    }
    return at
  }

  #next(bytes: Uint8Array, at: number): number {
    const byte = bytes[at]!
    if (byte === openList || byte === openObject) {
      this.#depth += 1
      if (this.#depth === deepestKept + 1) this.#keep(Buffer.from('null'))
    } else if (byte === quote) {
      this.#isInText = true
      this.#isTextTooLong = false
      this.#textAt = this.#size
    }
    if (this.#depth <= deepestKept) this.#keepByte(byte)
    if (byte === closeList || byte === closeObject) this.#depth -= 1
    return at + 1
  }

  #keepByte(byte: number): void {
    if (this.#size === this.#kept.length) this.#grow(1)
    if (!this.#isTooLong) this.#kept[this.#size++] = byte
  }

  #keep(bytes: Uint8Array): void {
    if (this.#size + bytes.length > this.#kept.length) this.#grow(bytes.length)
    if (this.#isTooLong) return
    this.#kept.set(bytes, this.#size)
    this.#size += bytes.length
  }

  #grow(by: number): void {
    if (this.#size + by > longestResult) {
      this.#isTooLong = true
      this.#kept = Buffer.alloc(0)
      return
    }
    const grown = Buffer.alloc(Math.max(this.#size + by, this.#kept.length * 2))
    this.#kept.copy(grown, 0, 0, this.#size)
    this.#kept = grown
  }
}
