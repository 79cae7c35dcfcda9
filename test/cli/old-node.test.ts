import { spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { transform } from 'esbuild'
import { describe, expect, onTestFinished, test } from 'vitest'
import { findPackageRoot } from '../../src/lib/fs.ts'

const program = join(findPackageRoot(), 'bin', 'run.js')
const { problemOf } = createRequire(import.meta.url)(program) as { problemOf(version: string): string | undefined }

/** Runs a script of this package on a Node that reports another version. */
function runAs(version: string, script: string, ...args: string[]) {
  const folder = mkdtempSync(join(tmpdir(), 'mirror-node-'))
  onTestFinished(() => rmSync(folder, { recursive: true }))
  const pretend = join(folder, 'pretend.cjs')
  const versions = `{ ...process.versions, node: ${JSON.stringify(version)} }`
  writeFileSync(pretend, `Object.defineProperty(process, 'versions', { value: ${versions} })`)
  const env = { ...process.env, MIRROR_HOME: folder }
  return spawnSync(process.execPath, ['--require', pretend, script, ...args], { encoding: 'utf8', env })
}

describe('the check of the Node version', () => {
  test.each(['0.10.48', '4.9.1', '14.21.3', '16.20.2', '18.20.8', '20.0.0', '20.18.3', '21.7.3', '22.0.0', '22.2.0'])(
    'names the version that is needed on Node %s',
    (version) => {
      expect(problemOf(version)).toContain('Node 20.19 or newer is needed')
      expect(problemOf(version)).toContain(`this is Node ${version}`)
    },
  )

  test.each(['20.19.0', '20.20.2', '22.3.0', '22.12.0', '23.0.0', '24.1.0', '26.0.0', '100.0.0'])(
    'accepts Node %s',
    (version) => expect(problemOf(version)).toBeUndefined(),
  )

  test.each([
    ['the program', program, ['status']],
    ['help', program, ['--help']],
    ['the build, which npm ci starts', join(findPackageRoot(), 'scripts', 'build.js'), []],
  ])('ends %s with exit code 1 and without a stack on an old Node', (_, script, args) => {
    const { status, stdout, stderr } = runAs('18.20.8', script, ...args)
    expect({ status, stdout }).toEqual({ status: 1, stdout: '' })
    expect(stderr).toMatch(/^mirror: Node 20\.19 or newer is needed; this is Node 18\.20\.8 \(.*\)\.\n\nNext:\n/)
    expect(stderr).not.toMatch(/^\s+at /m)
  })

  test('stands in a file that every Node can parse', async () => {
    const text = readFileSync(program, 'utf8')
    // esbuild refuses or changes syntax that is newer than ES5.
    const asOld = await transform(text, { target: 'es5' })
    const asNew = await transform(text, { target: 'esnext' })
    expect(asOld.code).toBe(asNew.code)
    // Reject a comma after the last argument, which is newer, too.
    expect(text).not.toMatch(/,\s*\)/)
    expect(JSON.parse(readFileSync(join(findPackageRoot(), 'bin', 'package.json'), 'utf8'))).toEqual({
      type: 'commonjs',
    })
  })

  test('needs the version that package.json names in engines', () => {
    const { engines } = JSON.parse(readFileSync(join(findPackageRoot(), 'package.json'), 'utf8')) as {
      engines: { node: string }
    }
    expect(problemOf('18.0.0')).toContain(engines.node.replace('>=', 'Node '))
  })
})
