import { readFileSync } from 'node:fs'

// Matches what TypeScript writes: const x_1 = require("x"); const x_1 = __importDefault(require("x"));
const declaration = /^const (\w+) = ((?:__import\w+\()?require\("[^"]+"\)\)?);$/gm

// Loads the check for Linux on Windows and for the shell. The bundle leaves it out, because on Windows the check for the shell runs
// PowerShell at every start; without a result the framework uses COMSPEC.
const wslQuestion = "(await import('wsl-utils'))"

/** Rewrites a module of the framework, so that it loads each other module at its first use. */
function lazy(text, path) {
  const names = []
  let contents = text.replace(declaration, (_, name, required) => {
    names.push(name)
    return `let ${name}_; const ${name} = () => ${name}_ ??= ${required};`
  })
  contents = contents.replaceAll(wslQuestion, '({})')
  for (const name of names) contents = contents.replace(new RegExp(`\\b${name}(?=\\.|\\))`, 'g'), `(${name}())`)
  // Throw if a use was not rewritten: it would treat the function as the module, and fail only when it runs.
  const missed = names.find((name) => new RegExp(`\\b${name}\\b(?!\\(\\)| = \\(\\) =>)`).test(contents))
  if (missed !== undefined) throw new Error(`${path} uses ${missed} in a way that lazy-requires.js does not know`)
  if (contents.includes('wsl-utils'))
    throw new Error(`${path} asks for wsl-utils in a way that lazy-requires.js does not know`)
  return contents
}

/**
 * Makes the CommonJS modules of @oclif/core load each other at first use. Unchanged, loading one of them loads all, down to help
 * and spinners.
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
