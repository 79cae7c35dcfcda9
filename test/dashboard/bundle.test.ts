import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { gzipSync } from 'node:zlib'
import { describe, expect, test } from 'vitest'
import { pageFolder } from './support/browser.ts'

const source = join(pageFolder, '..', '..', 'dashboard')
const listFiles = (folder: string, pattern: RegExp) =>
  readdirSync(folder, { recursive: true, encoding: 'utf8' }).filter((file) => pattern.test(file))
const sources = listFiles(source, /\.tsx?$/).map((file) => [file, readFileSync(join(source, file), 'utf8')] as const)
const built = listFiles(pageFolder, /\.\w+$/).map((file) => [file, readFileSync(join(pageFolder, file))] as const)

describe('the built page', () => {
  test('takes at most 40 kB with gzip, all files together', () => {
    const size = built.reduce((sum, [, bytes]) => sum + gzipSync(bytes, { level: 9 }).length, 0)
    console.log(`dashboard: ${size} bytes with gzip`)
    expect(size).toBeLessThanOrEqual(40_000)
  })

  test('has a page, a script, a style and an icon, and nothing inline', () => {
    expect(built.map(([file]) => file.replace(/-[A-Z0-9]{8}\./, '.')).toSorted()).toEqual([
      'assets/icon.svg',
      'assets/index.css',
      'assets/main.js',
      'index.html',
    ])
    const page = built.find(([file]) => file === 'index.html')![1].toString()
    expect(page).not.toMatch(/<style|style=|\son\w+=|<script(?![^>]*\ssrc=)/)
    for (const [, name] of page.matchAll(/(?:src|href)="\/([^"]+)"/g))
      expect(built.map(([file]) => file)).toContain(name)
  })

  test('names no other host', () => {
    for (const [file, bytes] of built) {
      const hosts = [...bytes.toString().matchAll(/https?:\/\/([\w.-]+)/g)].map(([, host]) => host)
      expect(
        hosts.filter((host) => host !== 'www.w3.org'),
        file,
      ).toEqual([])
    }
  })
})

describe('the source of the page', () => {
  // Text of upstreams and clients becomes text nodes, never HTML or code.
  test.each(sources)('makes no HTML and no code from text in %s', (_, text) => {
    expect(text).not.toMatch(
      /innerHTML|outerHTML|insertAdjacentHTML|dangerouslySetInnerHTML|document\.write|\beval\(|new Function|createContextualFragment/,
    )
  })

  test.each(sources)('imports only types of the program in %s', (_, text) => {
    for (const [line] of text.matchAll(/^(?:import|export)\b[^'"]*['"][^'"]*\/src\/[^'"]*['"]/gm))
      expect(line).toMatch(/^import type /)
  })

  test.each(listFiles(source, /\.(tsx?|css)$/))('has at most 400 lines in %s', (file) => {
    expect(readFileSync(join(source, file), 'utf8').split('\n').length - 1).toBeLessThanOrEqual(400)
  })
})
