import { string } from '@oclif/core/args'
import { BaseCommand } from '../cli/base-command.ts'
import { getCompletionScript, installation, shells } from '../cli/completion-scripts.ts'

export default class Completion extends BaseCommand {
  static override summary = 'Print a completion script for your shell'
  static override description =
    'The script completes commands, flags with their values, clients, cached and pushed images, and upstreams. Without SHELL, ' +
    'the command explains how to install it.'
  static override examples = [
    '<%= config.bin %> <%= command.id %>',
    'mkdir -p ~/.zfunc && <%= config.bin %> <%= command.id %> zsh > ~/.zfunc/_mirror',
    'eval "$(<%= config.bin %> <%= command.id %> bash)"',
  ]
  static override args = {
    shell: string({
      options: [...shells],
      description: `${shells.slice(0, -1).join(', ')} or ${shells.at(-1)} (default: explain the installation)`,
    }),
  }

  override async run(): Promise<void> {
    const { args } = await this.parse(Completion)
    const shell = shells.find((known) => known === args.shell)
    if (shell === undefined) this.print(installation)
    else process.stdout.write(getCompletionScript(shell))
  }
}
