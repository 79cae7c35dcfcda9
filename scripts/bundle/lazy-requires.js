import { readFileSync } from 'node:fs'

// As TypeScript writes them: const x_1 = require("x"); const x_1 = __importDefault(require("x"));
const declaration = /^const (\w+) = ((?:__import\w+\()?require\("[^"]+"\)\)?);$/gm

// A question about Windows' Linux, and about the shell: not asked here (on Windows the second starts a PowerShell at every start;
// without an answer the framework takes COMSPEC).
const wslQuestion = "(await import('wsl-utils'))"

/** A module of the framework that loads each other module when it first uses it. */
function lazy(text, path) {
  const names = []
  let contents = text.replace(declaration, (_, name, required) => {
    names.push(name)
    return `let ${name}_; const ${name} = () => ${name}_ ??= ${required};`
  })
  contents = contents.replaceAll(wslQuestion, '({})')
  for (const name of names) contents = contents.replace(new RegExp(`\\b${name}(?=\\.|\\))`, 'g'), `(${name}())`)
  // A use that was not found would take the function for the module, and fail only when somebody comes to it.
  const missed = names.find((name) => new RegExp(`\\b${name}\\b(?!\\(\\)| = \\(\\) =>)`).test(contents))
  if (missed !== undefined) throw new Error(`${path} uses ${missed} in a way that lazy-requires.js does not know`)
  if (contents.includes('wsl-utils'))
    throw new Error(`${path} asks for wsl-utils in a way that lazy-requires.js does not know`)
  return contents
}

/**
 * The CommonJS modules of @oclif/core load each other when they are loaded, down to help and spinners. Here each loads
 * another when it first uses it.
 */
export const lazyRequires = {
  name: 'lazy-requires',
  setup(build) {
    build.onLoad({ filter: /@oclif[\\/]core[\\/]lib[\\/].*\.js$/ }, ({ path }) => ({
      contents: lazy(readFileSync(path, 'utf8'), path),
      loader: 'js',
    }))
  },
}
