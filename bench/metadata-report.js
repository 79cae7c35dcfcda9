// Renders the figures of the metadata as a section of RESULTS.md.
const tenths = (value) => `${value.toFixed(1)} ms`
const hundredths = (value) => `${value.toFixed(2)} ms`
const ms = (value) => `${value.toFixed(0)} ms`
const us = (value) => `${value.toFixed(0)} µs`
const kB = (value) => `${(value / 1e3).toFixed(1)} kB`
const MB = (value) => `${(value / 1e6).toFixed(0)} MB`
const bytes = (value) => `${value.toFixed(0)} B`
const count = (value) => value.toLocaleString('en-US')
const list = (values, show = count) => values.map((value) => (value === undefined ? 'not run' : show(value))).join(', ')

/** Renders a figure at each size, and how many times the first the last is. */
function grown(values, show) {
  const known = values.filter((value) => value !== undefined)
  const times = known.length < 2 ? '' : ` (${(known.at(-1) / known[0]).toFixed(2)} ×)`
  return `${list(values, show)}${times}`
}

/** Renders a figure of each store, with its difference to the first one, which is empty. */
function beside(values, show) {
  const sign = (value) => (value < values[0] ? '' : '+')
  const render = (value, at) => `${show(value)}${at === 0 ? '' : ` (${sign(value)}${show(value - values[0])})`}`
  return values.map(render).join(', ')
}

/** Returns the renderer of a figure of several rows. */
function of(key, show, render = list) {
  const pick = (each) => each[key]
  return (rows) => render(rows.map(pick), show)
}

/**
 * @param {Record<string, any>} figures by the names of the subjects
 * @param {{ window: number, rounds: number, tags: number, links: number }} effort
 */
export function reportMetadata({ names, heads, pulls, warm, pushes, starts, loops }, { window, rounds, tags, links }) {
  const row = (title, aim, all, render) =>
    `| ${[title, ...names.map((name) => (all[name] ? render(all[name]) : '–')), aim].join(' | ')} |`
  const perLink = ([empty, ...full]) => list(full, ({ memory, held }) => bytes((memory - empty.memory) / held / links))
  const [first] = names
  const pulled = list(pulls[first].map(({ size }) => size))
  const hit = list(warm[first].map(({ size }) => size))
  const stores = list(starts[first].map(({ manifests }) => manifests))
  return [
    '## Metadata',
    '',
    `A repository has images with a config and 12 layers of a few bytes that no other image has. Each size has a server of its own, which got so many manifests alone; the servers of all sizes take turns, ${rounds} times. “not run”: the size takes the others too long. The processor time is the user and system time of the server. Pulls are those of ${window} further images, whole, until a second after the last answer: means. Hits are of the tags and of one blob of 10 images that are spread over the repository: medians. “Beside the content” is what the server gave to calls that write, less what its client and its upstream received, and less the bytes of the manifests and blobs; its log and the wake-ups of its threads are in it. “To the disk” counts whole pages, those of the content too. Brackets hold the last figure beside the first, or the difference to an empty store. The starts are those after the first, which may convert the store.`,
    '',
    `| what | ${heads.join(' | ')} | aim |`,
    `|---|${names.map(() => '---').join('|')}|---|`,
    row(`processor time of a pull, at ${pulled} images`, '≤ 1.20 ×', pulls, of('cpu', tenths, grown)),
    row('written beside the content of that', '≤ 8 kB', pulls, of('beside', kB)),
    row('written to the disk by that', '', pulls, of('disk', kB)),
    row(`processor time of a tag hit, at ${hit} manifests`, '≤ 1.20 ×', warm, of('tag', us, grown)),
    row(`processor time of a blob hit, at ${hit} manifests`, '≤ 1.20 ×', warm, of('blob', us, grown)),
    row(`processor time of a pushed tag, each fifth of ${count(tags)}`, 'flat', pushes, (each) =>
      grown(each, hundredths),
    ),
    row(
      `start with ${stores} manifests of ${links} links, until \`/v2/\` answers`,
      '',
      starts,
      of('answers', ms, beside),
    ),
    row('the same, until a manifest is served', '+300 ms, +1500 ms', starts, of('served', ms, beside)),
    row('the same, first start', '', starts, of('first', ms)),
    row('processor time of the start until then', '', starts, of('cpu', ms, beside)),
    row('manifests held afterwards', 'all', starts, of('held', count)),
    row('memory afterwards', '', starts, of('memory', MB, beside)),
    row('memory of each link that is held', '≤ 120 B', starts, perLink),
    row(
      'event loop blocked while images are pulled and tags are pushed: 99th percentile, maximum',
      '≤ 20 ms',
      loops,
      ({ p99, max, pulled: images, written }) =>
        `${tenths(p99)}, ${ms(max)} (${count(images)} images, ${MB(written)} written beside their manifests)`,
    ),
    '',
  ]
}
