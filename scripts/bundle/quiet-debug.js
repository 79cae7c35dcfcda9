const contents = `
module.exports = process.env.DEBUG ? require('./node.js') : () => Object.assign(() => {}, { enabled: false })
`

/** Loads the framework's debug log, with its colours, only when DEBUG is set. */
export const quietDebug = {
  name: 'quiet-debug',
  setup(build) {
    build.onLoad({ filter: /node_modules[\\/]debug[\\/]src[\\/]index\.js$/ }, () => ({ contents }))
  },
}
