import type { Command } from '@oclif/core/command'
import { describeFlag, type ProgramDescription, renderExamples, renderFlagValue, toTypedName } from './help.ts'
import { wrapText } from './terminal.ts'

const files: readonly (readonly [path: string, description: string])[] = [
  ['~/.config/mirror/mirror.yaml', 'The configuration. `mirror init` writes it with every key.'],
  ['~/.config/mirror/mirror.schema.json', 'The JSON schema of mirror.yaml, for editors.'],
  ['~/.local/share/mirror/', 'Cached and pushed content.'],
  ['~/.local/state/mirror/', 'The state and the log of the running mirror.'],
]

const variables: readonly (readonly [name: string, description: string])[] = [
  ['MIRROR_HOME', 'A folder for everything: mirror.yaml, data and state. The default are the folders above.'],
  ['MIRROR_CONFIG', 'Another configuration file.'],
  ['MIRROR_DATA', 'Another folder for cached and pushed content.'],
  ['MIRROR_CACHE_MAX_SIZE', 'The setting cache.maxSize. Every setting outside upstreams has such a variable.'],
  ['NO_COLOR', 'No colours.'],
]

const exitCodes: readonly (readonly [code: string, description: string])[] = [
  ['0', 'Done.'],
  ['1', 'Failed: a bug, an I/O failure, or a Node that is too old.'],
  ['2', 'Wrong usage or configuration.'],
  ['3', 'The mirror is not running.'],
  ['4', 'A program, an engine or a service that is needed is missing.'],
  ['5', 'A check failed.'],
  ['130', 'Interrupted.'],
]

/** Renders the manual page of the program in the macros of man(7), from the same descriptions as the help. */
export function renderManPage({ name, description, version, commands, topics }: ProgramDescription): string {
  const program = name.toUpperCase()
  const shown = commands.filter(({ hidden }) => !hidden)
  const lines = [
    '.\\" Made by the build from the help of the commands.',
    `.TH ${program} 1 "" "${escapeText(`${name} ${version}`)}" "User Commands"`,
    '.SH NAME',
    ...renderText(description).map((line, at) => (at === 0 ? `${escapeText(name)} \\- ${line}` : line)),
    '.SH SYNOPSIS',
    `.B ${escapeText(name)}`,
    '.I COMMAND',
    '[FLAGS]',
    '.SH DESCRIPTION',
    ...renderText(`${description}.`),
    '.PP',
    escapeText(`\`${name} COMMAND --help\` shows the flags of a command in the terminal.`),
    ...topics.flatMap((topic) => [
      '.PP',
      `${escapeText(`${name} ${topic.name}`)}: ${escapeText(topic.description ?? '')}.`,
    ]),
    '.SH COMMANDS',
    ...shown.flatMap((command) => renderCommand(name, command)),
    '.SH FILES',
    escapeText('On Linux; XDG variables change the folders.'),
    ...files.flatMap(([path, text]) => renderItem(`.I ${escapeText(path)}`, text)),
    '.SH ENVIRONMENT',
    ...variables.flatMap(([variable, text]) => renderItem(`.B ${escapeText(variable)}`, text)),
    '.SH EXIT STATUS',
    ...exitCodes.flatMap(([code, text]) => renderItem(`.B ${code}`, text)),
    '.SH SEE ALSO',
    '.BR docker (1),',
    '.BR podman (1),',
    '.BR skopeo (1)',
  ]
  return `${lines.join('\n')}\n`
}

function renderCommand(name: string, command: Command.Cached): string[] {
  const typed = `${name} ${toTypedName(command.id)}`
  const args = Object.values(command.args).filter(({ hidden }) => hidden !== true)
  const flags = Object.values(command.flags)
    .filter(({ hidden }) => hidden !== true)
    .toSorted((a, b) => (a.name < b.name ? -1 : 1))
  const more = command.strict === false ? '...' : ''
  const renderArgument = ({ name: arg, required }: Command.Arg.Cached) =>
    required === true ? `${arg.toUpperCase()}${more}` : `[${arg.toUpperCase()}${more}]`
  const usage = [...args.map(renderArgument), ...(flags.length === 0 ? [] : ['[FLAGS]'])].join(' ')
  const paragraphs = [`${command.summary ?? ''}.`, ...(command.description ?? '').split('\n')].filter(
    (text) => text !== '',
  )
  const examples = renderExamples(command, name)
  return [
    `.SS ${escapeText(typed)}`,
    `.B ${escapeText(typed)}`,
    ...(usage === '' ? [] : [escapeText(usage)]),
    ...paragraphs.flatMap((text) => ['.PP', ...renderText(text)]),
    ...args.flatMap((arg) => renderItem(`.I ${escapeText(renderArgument(arg))}`, arg.description ?? '')),
    ...flags.flatMap((flag) => renderItem(renderFlag(flag), describeFlag(flag).replaceAll('\u00a0', ' '))),
    ...(examples.length === 0
      ? []
      : ['.PP', 'Examples:', '.PP', '.nf', ...examples.map((text) => `    ${escapeText(text)}`), '.fi']),
  ]
}

function renderFlag(flag: Command.Flag.Cached): string {
  const short = flag.char === undefined ? '' : `\\-${flag.char}, `
  return `.B ${short}\\-\\-${escapeText(flag.name)}${escapeText(renderFlagValue(flag))}`
}

function renderItem(tag: string, text: string): string[] {
  return ['.TP', tag, ...renderText(text)]
}

/** Wraps a text, because roff joins its lines again, and a page with short lines can be compared. */
function renderText(text: string): string[] {
  return wrapText(text, 66).map(escapeText)
}

/** Escapes a line of text: no character of it is a request of roff, and a hyphen stays one that can be copied. */
function escapeText(text: string): string {
  const escaped = text.replaceAll('\\', '\\e').replaceAll('-', '\\-').replaceAll(/[`´]/g, "'").replaceAll('…', '...')
  return /^[.']/.test(escaped) ? `\\&${escaped}` : escaped
}
