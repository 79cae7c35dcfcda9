// Runs all traffic at once against one mirror, breaks its upstreams, kills it, and checks its content.
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { Hostile } from './hostile.js'
import { Ledger } from './ledger.js'
import { Mirror } from './mirror.js'
import { Puller } from './pulls.js'
import { Pusher } from './pushes.js'
import { between, createRandom, pick } from './random.js'
import { Upstreams } from './upstream.js'

/** Sets the length of a period; upstreams are broken for its first `brokenMs`. */
const periodMs = 120_000
const brokenMs = 40_000
const mostBytes = 512 * 1024 * 1024
const pushers = 3

const cache = {
  // Keep the limit small, so that the store is full after a minute and evicts from then on.
  maxSize: '400MiB',
  tagFreshness: '1s',
  timeouts: { connect: '2s', headers: '2s', idle: '2s', revalidate: '1s' },
  prefetch: { layers: 4, rangesPerBlob: 3, rangeBytes: '2MiB', rangeMinSize: '8MiB' },
}

/**
 * @typedef {{ upstreams: Upstreams, mirror: Mirror, ledger: Ledger, msSinceFaults: () => number }} Scene
 * @typedef {{ ledger: Ledger, mirror: Mirror, upstreams: Upstreams, kills: number, checked: number, seconds: number }} Result
 */

/**
 * @param {{ home: string, minutes: number, seed: number, say: (line: string) => void }} options
 * @returns {Promise<Result>}
 */
export async function soak({ home, minutes, seed, say }) {
  const random = createRandom(seed)
  const begun = Date.now()
  const until = begun + minutes * 60_000
  const upstreams = new Upstreams(seed)
  await upstreams.start()
  const mirror = new Mirror(home, upstreams.urls, { cache })
  const ledger = new Ledger()
  let faultsEnded = 0
  const msSinceFaults = () => (upstreams.isFaulty ? 0 : Date.now() - faultsEnded)
  const scene = { upstreams, mirror, ledger, msSinceFaults }
  await mirror.start()
  const first = mirror.observe()

  const pullerList = Array.from({ length: 4 }, (_, at) => new Puller(scene, seed + at))
  const pusherList = Array.from({ length: pushers }, (_, at) => new Pusher(scene, `soak/w${at}`, seed + 100 + at))
  const hostile = new Hostile(scene, seed + 200)
  const gate = new Gate(pushers)
  const isOver = () => Date.now() >= until
  let kills = 0
  let checked = 0
  const checkAll = async () => {
    for (const pusher of pusherList) checked += await pusher.check()
  }
  /** Repeats the task until the time is over; an error of the soak itself ends the run. */
  const repeat = async (task, pauseMs) => {
    while (!isOver()) {
      if (mirror.isUp) await task()
      await sleep(between(random, 0, pauseMs))
    }
  }
  const pull = (puller) => {
    const kinds = ['cold', 'warm', 'warm', 'warm', 'old', 'crowd', 'ranges', 'ranges', 'abandon']
    return puller[pick(random, kinds)]()
  }
  const admin = async (traffic, accepted, ...args) => {
    const { epoch } = mirror
    const { code, text } = await mirror.command(...args)
    if (mirror.epoch !== epoch || !mirror.isUp) return
    ledger.count('commands', `${traffic} ${code}`)
    if (!accepted.includes(code)) ledger.find(`mirror ${args.join(' ')}: exit ${code}: ${text.slice(0, 500)}`)
  }
  const tend = async () => {
    const task = pick(random, ['prune', 'verify', 'remove', 'collect', 'collect all', 'prune pushed', 'status'])
    const tidy = pusherList[0]
    if (task === 'prune') await admin(task, [0], 'cache', 'prune')
    else if (task === 'verify') await admin(task, [0], 'cache', 'verify')
    else if (task === 'status') await admin(task, [0], 'status', '--json')
    else if (task === 'collect') await admin(task, [0], 'registry', 'gc')
    else if (task === 'remove') {
      const { registry, name, tag } = pick(random, upstreams.published.slice(-20))
      // Accept exit 2, because the image may not be cached.
      await admin(task, [0, 2], 'cache', 'rm', `${registry}/${name}:${tag}`)
    } else
      await gate.exclusive(async () => {
        if (task === 'collect all') {
          for (const pusher of pusherList) pusher.releaseUntagged()
          await admin(task, [0], 'registry', 'gc', '--grace', '0s', '--untagged')
        } else {
          await admin(task, [0, 2], 'registry', 'prune', tidy.name, '--older-than', '1s', '--keep', '3')
          await tidy.keepPruned(3)
        }
        await checkAll()
      })
  }
  const killNow = async () => {
    await sleep(between(random, 10_000, 40_000))
    if (isOver()) return
    await mirror.kill()
    kills += 1
    await gate.exclusive(async () => {
      await mirror.start()
      await checkAll()
    })
  }
  const watch = async () => {
    const { epoch } = mirror
    const { status, milliseconds } = await mirror.healthMs()
    if (mirror.epoch !== epoch || !mirror.isUp) return
    ledger.slowestHealthMs = Math.max(ledger.slowestHealthMs, milliseconds)
    if (status !== 200) ledger.find(`/healthz: ${status} after ${Math.round(milliseconds)} ms`)
    mirror.observe()
    const unexpected = mirror.unexpectedEnds.splice(0)
    for (const end of unexpected) ledger.find(end)
  }
  const tick = async () => {
    const isBad = (Date.now() - begun) % periodMs < Math.min(brokenMs, (minutes * 60_000) / 3)
    if (upstreams.isFaulty && !isBad) faultsEnded = Date.now()
    upstreams.isFaulty = isBad
    await sleep(200)
  }
  const report = async () => {
    await sleep(30_000, undefined, { ref: false })
    if (isOver()) return
    const held = mirror.observe()
    say(
      `${Math.round((Date.now() - begun) / 1000)} s: ${ledger.total()} answers, ${Math.round(ledger.bytesChecked / 1e6)} MB checked, ${kills} kills, ${checked} objects checked, ${Math.round((held?.bytes ?? 0) / 2 ** 20)} MiB, ${held?.descriptors ?? 0} descriptors, ${ledger.findingCount} findings`,
    )
  }
  const always = async (task) => {
    while (!isOver()) await task()
  }

  // End the run at the first error, because waiting for the other tasks would hide it.
  await Promise.all([
    ...pullerList.map((puller) => repeat(() => pull(puller), 20)),
    ...pusherList.map((pusher) => repeat(() => gate.pass(() => pusher.push()), 150)),
    repeat(() => hostile.act(), 1500),
    repeat(tend, 8000),
    repeat(watch, 1000),
    always(killNow),
    always(tick),
    Promise.race([always(report), sleep(minutes * 60_000)]),
  ])

  upstreams.isFaulty = false
  faultsEnded ||= Date.now()
  say('the end: upstreams are well again; a circuit may stay open for 30 s')
  await sleep(Math.max(0, 32_000 - msSinceFaults()))
  faultsEnded = 0
  for (let at = 0; at < 20; at++) await pullerList[0][pick(random, ['cold', 'warm', 'old'])]()
  await checkAll()
  await admin('verify', [0], 'cache', 'verify')
  for (const each of [...pullerList, ...pusherList]) each.stop()
  await sleep(5000)
  const last = mirror.observe()
  if (first && last && last.descriptors > first.descriptors + 60) {
    ledger.find(`descriptors: ${first.descriptors} at first, ${last.descriptors} at rest`)
  }
  const code = await mirror.stop()
  if (code !== 0) ledger.find(`SIGTERM: it ended with ${code}`)
  for (const end of mirror.unexpectedEnds) ledger.find(end)
  if (mirror.peakBytes > mostBytes) ledger.find(`memory: ${Math.round(mirror.peakBytes / 2 ** 20)} MiB at most`)
  const litter = readdirSync(join(home, 'data'), { recursive: true }).filter((path) => /(^|\/)tmp\/./.test(path))
  if (litter.length > 0) ledger.find(`temporary files are left: ${litter.slice(0, 5).join(', ')}`)
  upstreams.stop()
  return { ledger, mirror, upstreams, kills, checked, seconds: (Date.now() - begun) / 1000 }
}

/** Lets pushes run concurrently, and runs exclusive tasks while no push runs. */
class Gate {
  #closed = Promise.resolve()
  #running = new Set()
  #turn = Promise.resolve()

  async pass(task) {
    await this.#closed
    const running = task()
    this.#running.add(running)
    try {
      await running
    } finally {
      this.#running.delete(running)
    }
  }

  /** @param {() => Promise<void>} task */
  exclusive(task) {
    const turn = this.#runAlone(this.#turn, task)
    this.#turn = turn.catch(() => {})
    return turn
  }

  async #runAlone(before, task) {
    await before
    const alone = this.#aloneOnceIdle(task)
    this.#closed = alone.catch(() => {})
    await alone
  }

  async #aloneOnceIdle(task) {
    await Promise.allSettled(this.#running)
    await task()
  }
}
