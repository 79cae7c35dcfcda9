import { readFileSync, readdirSync } from 'node:fs'
import { join } from 'node:path'

/** The licences of the packages that these files (paths from `root`, as the bundler names them) belong to. */
export function noticesOf(files, root) {
  const folders = files.map((file) => /^.*node_modules\/(?:@[^/]+\/)?[^/]+(?=\/)/.exec(file)?.[0])
  const packages = [...new Set(folders.filter((folder) => folder !== undefined))]
  return packages
    .map((folder) => {
      const { name, version, license } = JSON.parse(readFileSync(join(root, folder, 'package.json'), 'utf8'))
      const file = readdirSync(join(root, folder)).find((entry) => /^licen[cs]e(\.|$)/i.test(entry))
      const text = file === undefined ? `License: ${license}` : readFileSync(join(root, folder, file), 'utf8').trim()
      return `${name} ${version}\n\n${text}\n`
    })
    .toSorted()
    .join(`\n${'-'.repeat(80)}\n\n`)
}
