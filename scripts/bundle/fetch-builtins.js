import { isBuiltin } from 'node:module'

const importOf = /^import ([^"';]+?) from "([^"]+)";/gm
const clauses = /\{[^}]*\}|\* as [\w$]+|[\w$]+/g

/**
 * A module of Node's own that is imported has all its exports read, the lazy ones too: `node:http` loads the whole of fetch, which
 * takes newer Nodes as long as the rest of their start. Fetched by hand it gives what is asked for. The fetching stands on the
 * first line, so that the others keep their numbers.
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
