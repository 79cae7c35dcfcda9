import { isBuiltin } from 'node:module'

const importOf = /^import ([^"';]+?) from "([^"]+)";/gm
const clauses = /\{[^}]*\}|\* as [\w$]+|[\w$]+/g

/**
 * Replaces imports of Node's own modules with `process.getBuiltinModule`, which reads only the exports in use. An import reads all
 * exports, the lazy ones too: `node:http` would load all of fetch, which takes newer Nodes as long as the rest of their start. The
 * replacements are on the first line, so that the other lines keep their numbers.
 */
export function fetchBuiltins(text) {
  const fetched = []
  const rest = text.replace(importOf, (line, clause, name) => {
    if (!isBuiltin(name)) return line
    const module = `globalThis.process.getBuiltinModule("${name}")`
    for (const part of clause.match(clauses))
      fetched.push(`const ${part.replaceAll(' as ', ': ').replace('*: ', '')} = ${module};`)
    return ''
  })
  return `${fetched.join(' ')}${rest}`
}
