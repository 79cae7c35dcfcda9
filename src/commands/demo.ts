import { BaseCommand } from '../cli/base-command.ts'
import { jsonFlag } from '../cli/flags.ts'

export default class Demo extends BaseCommand {
  static override summary = 'Show a cold, a warm and an offline pull on this machine'
  static override description =
    'Makes an image and an upstream registry that is as slow as one on the internet, starts a mirror in a temporary folder, ' +
    'and pulls three times: cold, warm, and with the upstream switched off. Needs no internet and leaves nothing behind.'
  static override examples = ['<%= config.bin %> <%= command.id %>', '<%= config.bin %> <%= command.id %> --json']
  static override flags = { json: jsonFlag }

  override async run(): Promise<void> {
    const { flags } = await this.parse(Demo)
    const { runDemo } = await import('../demo/demo.ts')
    if (flags.json) return this.printJson(await runDemo(() => {}))

    const { renderDemoEnd, renderDemoStep } = await import('../cli/render/up.ts')
    const { getColumns } = await import('../cli/terminal.ts')
    const colors = this.getColorsFor(process.stdout)
    const columns = getColumns(process.stdout)
    const story = await runDemo((step) => this.print(renderDemoStep(step, colors, columns)))
    this.report(renderDemoEnd(story, colors, columns))
  }
}
