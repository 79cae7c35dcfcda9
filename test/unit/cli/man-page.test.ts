import { spawnSync } from 'node:child_process'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { renderManPage } from '../../../src/cli/man-page.ts'
import { findPackageRoot } from '../../../src/lib/fs.ts'

const root = findPackageRoot()
const read = (file: string) => readFile(join(root, file), 'utf8')
const { description, version, oclif, man } = JSON.parse(await read('package.json'))
const commands = Object.values<never>(JSON.parse(await read('oclif.manifest.json')).commands)
const topics = Object.entries(oclif.topics).map(([name, topic]) => ({ name, ...(topic as object) }))
const page = renderManPage({ name: 'mirror', description, version, commands, topics })

/** Returns the text of the page without roff's escapes. */
const plain = page.replaceAll('\\-', '-').replaceAll('\\e', '\\').replaceAll('\\&', '')

const hasProgram = (name: string, ...args: string[]) => spawnSync(name, args).error === undefined

describe('the manual page', () => {
  test('describes every command with its flags and examples, as the help does', () => {
    for (const { id, flags, summary, examples = [] } of commands as {
      id: string
      flags: Record<string, object>
      summary: string
      examples?: string[]
    }[]) {
      expect(plain).toContain(`.SS mirror ${id.replace(':', ' ')}\n`)
      expect(plain.replaceAll(/\s+/g, ' ')).toContain(summary)
      for (const name of Object.keys(flags)) expect(plain).toMatch(new RegExp(`^\\.B (-\\w, )?--${name}( |$)`, 'm'))
      for (const example of examples) {
        const text = example
          .replaceAll('<%= config.bin %>', 'mirror')
          .replaceAll('<%= command.id %>', id.replace(':', ' '))
        expect(plain).toContain(`    ${text}\n`)
      }
    }
  })

  test('names the exit codes, the files and the variables', () => {
    for (const part of ['EXIT STATUS', 'FILES', 'ENVIRONMENT', 'SEE ALSO']) expect(page).toContain(`.SH ${part}\n`)
    for (const code of ['0', '1', '2', '3', '4', '5', '130']) expect(page).toContain(`.B ${code}\n`)
    expect(page).toContain('.B MIRROR_HOME\n')
  })

  test('has no line of text that roff takes for a request, no template and no control character', () => {
    const requests = page.split('\n').filter((line) => /^[.']/.test(line))
    for (const line of requests) expect(line).toMatch(/^\.(\\"|TH|SH|SS|PP|TP|BR?|I|nf|fi)( |$)/)
    expect(page).not.toMatch(/<%|undefined|\[object/)
    // oxlint-disable-next-line no-control-regex
    expect(page).not.toMatch(/[\x00-\x09\x0b-\x1f\x7f-\u{10ffff}]/u)
    const odd = {
      id: 'x',
      summary: '.so /etc/passwd',
      description: "'x\\n and \\ back",
      args: {},
      flags: {},
      examples: ['.x'],
    }
    const made = renderManPage({ name: 'mirror', description: 'd', version: '1', topics: [], commands: [odd as never] })
    expect(made).toContain('\n\\&.so /etc/passwd.\n')
    expect(made).toContain("\n\\&'x\\en and \\e back\n")
    expect(made).toContain('\n    \\&.x\n')
  })

  test('is in the package, under the name that `man` looks for', async () => {
    expect(man).toEqual(['./dist/man/mirror.1'])
    expect(await read('dist/man/mirror.1')).toBe(page)
  })

  test.skipIf(!hasProgram('mandoc', '-l', '/dev/null'))('has no fault for mandoc', () => {
    const { stdout, stderr } = spawnSync('mandoc', ['-Tlint', '-Wwarning', join(root, 'dist', 'man', 'mirror.1')], {
      encoding: 'utf8',
    })
    const known = /missing date/
    expect(`${stdout}${stderr}`.split('\n').filter((line) => line !== '' && !known.test(line))).toEqual([])
  })

  test.skipIf(!hasProgram('groff', '--version'))('is shown by groff without a warning', () => {
    const { stdout, stderr } = spawnSync('groff', ['-man', '-Tascii', '-ww', join(root, 'dist', 'man', 'mirror.1')], {
      encoding: 'utf8',
    })
    expect(stderr).toBe('')
    expect(stdout).toContain('A check failed.')
  })
})
