// Runs `mirror demo` and draws its output as docs/demo.svg, the picture in the README.
import { spawnSync } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const run = spawnSync(process.execPath, [join(root, 'bin', 'run.js'), 'demo'], {
  cwd: root,
  encoding: 'utf8',
  env: { ...process.env, FORCE_COLOR: '1', NO_COLOR: '', COLUMNS: '100' },
})
if (run.status !== 0) throw new Error(run.stderr)

const lines = [`\u001B[2m$\u001B[0m mirror demo`, ...run.stdout.trimEnd().split('\n')]
const size = 14
const advance = size * 0.6
const leading = 20
const width = Math.ceil(Math.max(...lines.map((line) => plain(line).length)) * advance) + 48
const height = lines.length * leading + 56
const colours = {
  1: 'font-weight="700"',
  2: 'fill="#7d8590"',
  31: 'fill="#ff7b72"',
  32: 'fill="#3fb950"',
  33: 'fill="#d29922"',
  36: 'fill="#39c5cf"',
}

function plain(line) {
  return line.replaceAll(/\u001B\[[\d;]*m/g, '')
}

function escape(text) {
  return text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;')
}

function draw(line, at) {
  const active = new Set()
  let column = 0
  let spans = ''
  for (const part of line.split(/(\u001B\[[\d;]*m)/)) {
    const code = /^\u001B\[([\d;]*)m$/.exec(part)
    if (code) {
      for (const number of code[1].split(';').map(Number)) {
        if (number === 0 || number === 22 || number === 39) active.clear()
        else active.add(number)
      }
    } else if (part !== '') {
      const style = [...active].map((number) => colours[number] ?? '').join(' ')
      spans += `<tspan x="${(24 + column * advance).toFixed(1)}" ${style}>${escape(part)}</tspan>`
      column += part.length
    }
  }
  return `<text y="${48 + at * leading}" xml:space="preserve">${spans}</text>`
}

const svg = `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" role="img" aria-label="mirror demo in a terminal">
<rect width="100%" height="100%" rx="10" fill="#0d1117"/>
<circle cx="20" cy="18" r="5" fill="#ff5f57"/><circle cx="38" cy="18" r="5" fill="#febc2e"/><circle cx="56" cy="18" r="5" fill="#28c840"/>
<g font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace" font-size="${size}" fill="#e6edf3">
${lines.map(draw).join('\n')}
</g>
</svg>
`
writeFileSync(join(root, 'docs', 'demo.svg'), svg)
