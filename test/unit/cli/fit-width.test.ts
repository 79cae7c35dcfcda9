import { describe, expect, test } from 'vitest'
import { renderError } from '../../../src/cli/render/log.ts'
import { createColors, fitText, renderChoices } from '../../../src/cli/terminal.ts'
import { MirrorError } from '../../../src/lib/errors.ts'

const command = `sudo chown -R "$(id -un)": /home/somebody/with/a/long/name/of/a/folder`

describe('a text that is too long for the terminal', () => {
  test.each([
    [
      'mirror: Cannot open /home/w/state/mirror.json: no permission, because it belongs to somebody.',
      ['mirror: Cannot open /home/w/state/mirror.json: no', '  permission, because it belongs to somebody.'],
    ],
    [`  ${command}   (if it should be yours)`, [`  ${command}`, '    (if it should be yours)']],
    [
      'Nothing is cached yet. Try: docker pull 127.0.0.1:5055/docker.io/library/alpine',
      ['Nothing is cached yet. Try:', '  docker pull 127.0.0.1:5055/docker.io/library/alpine'],
    ],
    [
      'Next:  mirror configure   (has docker, containerd and kind pull through it)',
      ['Next:  mirror configure', '       (has docker, containerd and kind pull through it)'],
    ],
    [
      'mirror is not running: it died, nobody stopped it (pid 7, started at noon).',
      ['mirror is not running: it died, nobody stopped it (pid 7,', '  started at noon).'],
    ],
    ['Short.\n  mirror up   (a note)', ['Short.', '  mirror up   (a note)']],
  ])('is wrapped between words and before a command: %s', (text, lines) => {
    expect(fitText(text, 60)).toBe(lines.join('\n'))
    expect(fitText(text, undefined)).toBe(text)
  })

  test('is wrapped in an error, whose commands stay whole', () => {
    const hints = [`${command}   (if it should be yours)`, 'mirror up']
    const error = new MirrorError('Cannot use the folder /home/somebody/cache for the store: no permission.', { hints })
    const style = {
      debug: false,
      columns: 60,
      nameCommands: (text: string) => text.replace('mirror up', 'npx mirror up'),
    }
    expect(renderError(error, createColors(false), style)).toBe(
      'mirror: Cannot use the folder /home/somebody/cache for the\n  store: no permission.\n\nNext:\n' +
        `  ${command}\n    (if it should be yours)\n  npx mirror up\n`,
    )
  })
})

test('a label stays in front of the text, whose further lines begin below its first word', () => {
  expect(fitText('FAIL  podman did not contact the mirror for docker.io/mirror-check/5288693c:check', 60)).toBe(
    'FAIL  podman did not contact the mirror for\n      docker.io/mirror-check/5288693c:check',
  )
})

test.each([
  'To do: docker build (BuildKit) before Docker 26 uses the mirror only after a restart of dockerd.',
  'podman, user (/home/walker/.config/containers/registries.conf.d): points at http://127.0.0.1:7055.',
  'podman is already configured: user (/home/walker/.config/containers/registries.conf.d).',
])('the sentence "%s" is no command, so it is wrapped', (text) => {
  for (const line of fitText(text, 60).split('\n')) expect(line.length).toBeLessThanOrEqual(60)
})

test('carriage returns and other line ends of programs end lines too, and no text is lost', () => {
  const long = 'E1130 a message of the program '.repeat(4).trim()
  for (const end of ['\r\n', '\r', '\u2028'])
    expect(fitText(`${long}${end}FATA the end`, 60).split('\n').at(-1)).toBe('FATA the end')
  expect(fitText('   http://a:1/b   ', 10).trim()).toBe('http://a:1/b')
})

test.each([
  '--image and --memory have no effect on a mirror that runs as a process. A mirror in a container uses them: mirror up',
  '--cache-port and --registry-port were not given this time. To keep the mirror as it was: mirror up --cache-port 1',
])('"%s" begins with flags, and its command is at the end', (text) => {
  const lines = fitText(text, 60).split('\n')
  for (const line of lines) expect(line.length).toBeLessThanOrEqual(60)
  expect(lines.at(-1)).toMatch(/^ {2}mirror up/)
})

test('a sentence that goes on after its command is wrapped around the command', () => {
  expect(fitText('  fix /home/walker/.config/containers/registries.conf, then run the command again', 60)).toBe(
    '  fix /home/walker/.config/containers/registries.conf, then\n    run the command again',
  )
})

test('a command in a sentence that is too long has a line of its own', () => {
  const text = '  podman, user: points at http://127.0.0.1:7055. To fix it: mirror configure podman'
  expect(fitText(text, 60)).toBe(
    '  podman, user: points at http://127.0.0.1:7055. To fix it:\n    mirror configure podman',
  )
})

test('colours stay with their words when a line is wrapped', () => {
  const { bold, yellow } = createColors(true)
  expect(
    fitText(`${bold('To do:')} minikube start --profile minikube   (for an existing one: minikube start)`, 60),
  ).toBe(`${bold('To do:')}\n  minikube start --profile minikube\n  (for an existing one: minikube start)`)
  const words = 'One two three four five six'
  expect(fitText(yellow(`  ${words}`), 20)).toBe(`  ${yellow('One two three four\n    five six')}`)
})

test('the description of a choice is in a column, or below its name where the terminal is narrow', () => {
  const choices = [
    { name: 'podman 4.3.1', description: 'Podman, Buildah and Skopeo: registries.conf.d', value: 1 },
    { name: 'kind', description: 'new clusters', value: 2 },
  ]
  expect(renderChoices(choices, 57, 3).map(({ name }) => name)).toEqual([
    `podman 4.3.1   Podman, Buildah and Skopeo:\n${' '.repeat(18)}registries.conf.d`,
    'kind           new clusters',
  ])
  expect(renderChoices(choices, 37, 3).map(({ name }) => name)).toEqual([
    'podman 4.3.1\n     Podman, Buildah and Skopeo:\n     registries.conf.d',
    'kind\n     new clusters',
  ])
})
