import { join, resolve } from 'node:path'
import { boolean, string } from '@oclif/core/flags'
import { refuseForeignFile } from '../admin/sudo.ts'
import { BaseCommand } from '../cli/base-command.ts'
import { cachePortFlag, configFlag, dryRunFlag, yesFlag } from '../cli/flags.ts'
import { mirrorPaths } from '../config/paths.ts'
import type { ConfigChoices, TemplateName } from '../daemon/init.ts'
import { findPackageRoot } from '../lib/fs.ts'
import { type CommandEnvironment, quoteShellWord } from '../lib/process.ts'
import { parseSize } from '../lib/units.ts'

export default class Init extends BaseCommand {
  static override summary = 'Write mirror.yaml, or print a template that runs the mirror'
  static override description =
    'Writes a commented mirror.yaml. On a terminal it asks; each question has a flag. An existing file is left alone. With ' +
    '--upstream HOST=URL a company cache stands in for HOST; the path of URL becomes the prefix.'
  static override examples = [
    '<%= config.bin %> <%= command.id %>',
    '<%= config.bin %> <%= command.id %> --yes --max-size 50GiB --upstream registry.corp.example',
    '<%= config.bin %> <%= command.id %> --yes --upstream docker.io=https://cr.corp/hub',
    '<%= config.bin %> <%= command.id %> --template compose --output compose.yaml',
    '<%= config.bin %> <%= command.id %> --dry-run',
  ]
  static override flags = {
    'cache-port': cachePortFlag,
    'max-size': string({
      description: 'maximum size of the cache (default 20GiB, 0: no limit)',
      helpValue: 'SIZE',
      env: 'MIRROR_CACHE_MAX_SIZE',
    }),
    upstream: string({
      description: 'additional registry, or its company cache (default: none)',
      helpValue: 'HOST[=URL]',
      multiple: true,
    }),
    template: string({
      description: 'kind of file to print (default: write mirror.yaml)',
      options: ['compose', 'systemd', 'launchd', 'caddy', 'k8s'],
    }),
    output: string({
      char: 'o',
      description: 'file to write the template to (default: stdout)',
      helpValue: 'FILE',
      dependsOn: ['template'],
    }),
    image: string({
      description: 'image in the template (default dev-mirror:local)',
      helpValue: 'REF',
      env: 'MIRROR_IMAGE',
    }),
    yes: yesFlag,
    force: boolean({ description: 'replace an existing file' }),
    config: configFlag,
    'dry-run': dryRunFlag,
  }

  override async run(): Promise<void> {
    const { flags } = await this.parse(Init)
    const surroundings = this.getOwnSurroundings({ MIRROR_CONFIG: flags.config })
    if (flags.template !== undefined) return this.writeTemplate(flags.template as TemplateName, surroundings, flags)
    const { configFile } = mirrorPaths(surroundings)
    await this.warnOfMisspelledVariables()
    const { refuseExisting, renderConfig, writeConfig } = await import('../daemon/init.ts')
    const { findSchemaToWrite, writeSchema } = await import('../daemon/schema-file.ts')
    if (!flags.force && !flags['dry-run']) await refuseExisting(configFile, this.commandLine)
    const choices = await this.askForChoices(flags)
    const template = join(findPackageRoot(), 'templates', 'mirror.yaml')
    const text = await renderConfig({ choices, configFile, template, homedir: surroundings.homedir })
    if (flags['dry-run']) {
      process.stdout.write(text)
      this.info(`Would write ${configFile}`)
      const schema = await findSchemaToWrite(configFile, { isNew: true })
      return schema && this.info(`Would write ${schema.file} (its schema, for editors)`)
    }
    const copy = await writeConfig(configFile, text, { force: flags.force, command: this.commandLine })
    const schema = await writeSchema(configFile, { isNew: true })
    this.reportWritten(configFile, copy, 'the settings')
    if (schema !== undefined)
      this.info(`Wrote the schema, with which editors complete and check the settings: ${schema}`)
    this.info('Apply it with: mirror up')
  }

  private async writeTemplate(
    name: TemplateName,
    surroundings: CommandEnvironment,
    flags: { image?: string | undefined; output?: string | undefined; force: boolean; 'dry-run': boolean },
  ): Promise<void> {
    const { renderTemplate } = await import('../daemon/init.ts')
    const { program } = this
    const templates = join(findPackageRoot(), 'templates')
    const text = await renderTemplate({ name, surroundings, program, templates, image: flags.image })
    if (flags.output === undefined || flags['dry-run']) {
      process.stdout.write(text)
      if (flags.output !== undefined) this.info(`Would write ${resolve(flags.output)}`)
      return
    }
    const file = resolve(flags.output)
    refuseForeignFile(`--output ${flags.output}`, file, surroundings)
    const { writeConfig } = await import('../daemon/init.ts')
    const copy = await writeConfig(file, text, { force: flags.force, command: this.commandLine })
    this.reportWritten(file, copy, 'the template')
  }

  /** Returns this command as the user gave it, without the flags that an error for an existing file suggests. */
  private get commandLine(): string {
    const args = this.argv.filter((arg) => arg !== '--force' && arg !== '--dry-run')
    return ['mirror init', ...args.map(quoteShellWord)].join(' ')
  }

  /** Says what was written; prints the path alone for other programs. `copy`: the copy of the file that was replaced. */
  private reportWritten(file: string, copy: string | undefined, what: string): void {
    if (copy !== undefined) this.info(`Kept the old file as ${copy}`)
    if (process.stdout.isTTY) this.info(`Wrote ${what}: ${file}`)
    else this.print(file)
  }

  private async askForChoices(flags: {
    'cache-port'?: number | undefined
    'max-size'?: string | undefined
    upstream?: string[] | undefined
    yes: boolean
    'dry-run': boolean
  }): Promise<ConfigChoices> {
    const { createPrompt } = await import('../cli/terminal.ts')
    const { describeUpstreamProblem } = await import('../daemon/init.ts')
    const { homedir } = this.getSurroundings()
    const silent = flags.yes || flags['dry-run']
    const prompt = silent ? undefined : createPrompt(process.stdin, process.stdout)
    const maxSize =
      flags['max-size'] ??
      (await prompt?.ask('How large may the cache grow?', {
        default: '20GiB',
        problem: (answer) => (parseSize(answer) === undefined ? 'A size such as 20GiB, or 0 for no limit' : undefined),
      }))
    const cachePort =
      flags['cache-port'] ??
      (await prompt?.ask('Which port for the cache?', {
        default: '5055',
        problem: (answer) =>
          /^\d{1,5}$/.test(answer) && Number(answer) <= 65_535 ? undefined : 'A port is a number from 0 to 65535',
      }))
    const upstreams =
      flags.upstream?.join(',') ??
      (await prompt?.ask('Additional registries (host names, separated by commas)?', {
        default: '',
        problem: (answer) =>
          splitList(answer).flatMap((upstream) => describeUpstreamProblem(upstream, homedir) ?? [])[0],
      }))
    return {
      cachePort: Number(cachePort ?? 5055),
      maxSize: maxSize ?? '20GiB',
      upstreams: splitList(upstreams ?? ''),
    }
  }
}

function splitList(text: string): string[] {
  return text.split(',').flatMap((part) => part.trim() || [])
}
