const contents = `
module.exports = process.env.DEBUG ? require('./node.js') : () => Object.assign(() => {}, { enabled: false })
`

/** The framework's log of what it does, with its colours, is loaded by who asks for it. */
export const quietDebug = {
  name: 'quiet-debug',
  setup(build) {
    build.onLoad({ filter: /node_modules[\\/]debug[\\/]src[\\/]index\.js$/ }, () => ({ contents }))
  },
}
