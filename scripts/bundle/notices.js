import { readFileSync, readdirSync } from 'node:fs'
import { join } from 'node:path'

/** Returns the licences of the packages that contain these files (paths from `root`, as the bundler names them). */
export function noticesOf(files, root) {
  const folders = files.map((file) => /^.*node_modules\/(?:@[^/]+\/)?[^/]+(?=\/)/.exec(file)?.[0])
  const packages = [...new Set(folders.filter((folder) => folder !== undefined))]
  return packages
    .map((folder) => {
      const { name, version, license } = JSON.parse(readFileSync(join(root, folder, 'package.json'), 'utf8'))
      const files = readdirSync(join(root, folder)).filter((entry) =>
        /^(licen[cs]e|notice|copying)([.-]|$)/i.test(entry),
      )
      const texts = files.map((file) => readFileSync(join(root, folder, file), 'utf8').trim())
      const text = texts.length === 0 ? `License: ${license}` : texts.join('\n\n')
      return `${name} ${version}\n\n${text}\n`
    })
    .toSorted()
    .join(`\n${'-'.repeat(80)}\n\n`)
}
