// Generates pseudo-random numbers that are the same for the same seed, so that a run can be repeated.
import { createCipheriv } from 'node:crypto'

/** @param {number} seed @returns {() => number} from 0 up to, but not including, 1 */
export function createRandom(seed) {
  let state = seed >>> 0
  return () => {
    // Use the algorithm mulberry32.
    state = (state + 0x6d2b79f5) >>> 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}

/** @param {() => number} random @param {number} from @param {number} to included */
export function between(random, from, to) {
  return from + Math.floor(random() * (to - from + 1))
}

/** @template T @param {() => number} random @param {readonly T[]} list @returns {T} */
export function pick(random, list) {
  return list[Math.floor(random() * list.length)]
}

/** Makes bytes that do not compress; equal sizes and seeds give equal bytes. @param {number} size @param {number} seed */
export function noise(size, seed) {
  const key = Buffer.alloc(16)
  key.writeUInt32LE(seed)
  return createCipheriv('aes-128-ctr', key, Buffer.alloc(16)).update(Buffer.alloc(size))
}
