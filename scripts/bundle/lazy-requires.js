import { readFileSync } from 'node:fs'

// As TypeScript writes them: const x_1 = require("x"); const x_1 = __importDefault(require("x"));
const declaration = /^const (\w+) = ((?:__import\w+\()?require\("[^"]+"\)\)?);$/gm

/**
 * The CommonJS modules of @oclif/core load each other when they are loaded, down to help and spinners. Here each loads
 * another when it first uses it.
 */
export const lazyRequires = {
  name: 'lazy-requires',
  setup(build) {
    build.onLoad({ filter: /@oclif[\\/]core[\\/]lib[\\/].*\.js$/ }, ({ path }) => {
      const names = []
      let contents = readFileSync(path, 'utf8').replace(declaration, (_, name, required) => {
        names.push(name)
        return `let ${name}_; const ${name} = () => ${name}_ ??= ${required};`
      })
      // A question about Windows' Linux; not asked here, and a file of its own to load.
      contents = contents.replaceAll("(await import('wsl-utils'))", '({})')
      for (const name of names) contents = contents.replace(new RegExp(`\\b${name}(?=\\.|\\))`, 'g'), `(${name}())`)
      return { contents, loader: 'js' }
    })
  },
}
