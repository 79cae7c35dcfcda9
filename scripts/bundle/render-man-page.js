import { runSource } from './run-source.js'

/** Returns the manual page of the program that the manifest describes. */
export async function renderManPage(root, { commands }, { description, version, oclif }) {
  const { renderManPage: render } = await runSource(root, 'src/cli/man-page.ts')
  const topics = Object.entries(oclif.topics).map(([name, topic]) => ({ name, ...topic }))
  return render({ name: oclif.bin, description, version, commands: Object.values(commands), topics })
}
