import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { relative } from 'node:path'

// Matches the code in src that reads a library's file and passes its text to a thread.
const reading = /\breadFile\(createRequire\(import\.meta\.url\)\.resolve\('([^']+)'\), 'utf8'\)/g

/**
 * Puts the text of library files that run in threads into the bundle, because users do not have these libraries as packages. Adds
 * the files to `inlined`, as paths from `root`.
 */
export function inlineSources(root, inlined) {
  return {
    name: 'inline-sources',
    setup(build) {
      build.onLoad({ filter: /[\\/]src[\\/].*\.ts$/ }, ({ path }) => {
        const text = readFileSync(path, 'utf8')
        if (!text.includes('createRequire(')) return undefined
        const contents = text.replace(reading, (_, name) => {
          const file = createRequire(path).resolve(name)
          inlined.add(relative(root, file))
          return `Promise.resolve(${JSON.stringify(readFileSync(file, 'utf8'))})`
        })
        if (contents.includes('createRequire('))
          throw new Error(`${path} asks for a package in a way that inline-sources.js does not know`)
        return { contents: contents.replace(/^import \{ createRequire \} from 'node:module'\n/m, ''), loader: 'ts' }
      })
    },
  }
}
