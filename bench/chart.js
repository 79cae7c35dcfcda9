// Draws the figures of the pulls: one group of bars for each row, each group with its own scale.
const colours = { mirror: '#2f6f4f', 'docker-registry': '#b0b7bf', nginx: '#7a8ea3', 'plain Node': '#d3d8dd' }
const rows = [
  {
    key: 'large',
    title: 'warm 60 MB blob, 1 client',
    of: 'value',
    show: (value) => `${(value / 1e9).toFixed(2)} GB/s`,
  },
  {
    key: 'large',
    title: 'processor time a GB (less is better)',
    of: 'cpuPerGB',
    show: (value) => `${value.toFixed(2)} s`,
  },
  { key: 'medium', title: 'warm 5 MB blob, 100 clients', of: 'value', show: (value) => `${Math.round(value)}/s` },
  { key: 'digest', title: 'manifest by digest, 100 clients', of: 'value', show: (value) => `${Math.round(value)}/s` },
  { key: 'tag', title: 'manifest by tag, 50 clients', of: 'value', show: (value) => `${Math.round(value)}/s` },
  { key: 'tiny', title: 'tiny blob, 16 clients', of: 'value', show: (value) => `${Math.round(value)}/s` },
  { key: 'cold', title: 'cold 60 MB blob, 1 client', of: 'value', show: (value) => `${Math.round(value / 1e6)} MB/s` },
  {
    key: 'memory',
    title: 'peak memory (less is better)',
    of: 'value',
    show: (value) => `${Math.round(value / 1e6)} MB`,
  },
]
const [bar, gap, left, width] = [14, 34, 250, 420]

/** @param {Record<string, any>} measured */
export function drawChart(measured) {
  let y = 20
  const parts = []
  const text = (x, at, words, more = '') =>
    parts.push(`<text x="${x}" y="${at}" font-size="12" fill="#444" ${more}>${words}</text>`)
  for (const { key, title, of, show } of rows) {
    const bars = Object.entries(measured[key]).filter(([name, figures]) => name in colours && figures[of] !== undefined)
    const most = Math.max(...bars.map(([, figures]) => figures[of]))
    text(left - 12, y + (bars.length * bar) / 2 + 4, title, 'text-anchor="end"')
    for (const [name, figures] of bars) {
      const length = Math.max(1, (figures[of] / most) * width)
      parts.push(
        `<rect x="${left}" y="${y}" width="${length.toFixed(1)}" height="${bar - 2}" fill="${colours[name]}"/>`,
      )
      text(left + length + 6, y + bar - 4, `${name} ${show(figures[of])}`, 'font-weight="300"')
      y += bar
    }
    y += gap - bar
  }
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 860 ${y}" font-family="system-ui, sans-serif" role="img" aria-label="How the mirror compares with docker-registry, nginx and a plain Node server"><rect width="860" height="${y}" fill="#fff"/>${parts.join('')}</svg>\n`
}
