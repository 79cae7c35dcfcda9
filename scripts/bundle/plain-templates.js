// The framework fills its texts by ejs, which compiles each into a function: 5 ms of `--help`. Ours hold only names.
const contents = `
exports.render = (text, values) =>
  text.replace(/<%[-=]?([^]*?)%>/g, (whole, expression) => {
    if (!/^\\s*[\\w.]+\\s*$/.test(expression)) throw new Error('a template holds more than a name: ' + whole)
    return expression.trim().split('.').reduce((value, name) => value[name], values)
  })
`

/** Gives the bundle a template engine that knows names. */
export const plainTemplates = {
  name: 'plain-templates',
  setup(build) {
    build.onResolve({ filter: /^ejs$/ }, ({ path }) => ({ path, namespace: 'plain-templates' }))
    build.onLoad({ filter: /.*/, namespace: 'plain-templates' }, () => ({ contents }))
  },
}
