import { describe, expect, test } from 'vitest'
import { renderError } from '../../../src/cli/render/log.ts'
import { createColors, fitText } from '../../../src/cli/terminal.ts'
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
      ['Next: mirror configure (has docker, containerd and kind pull', '  through it)'],
    ],
    [
      'mirror is not running: it died, nobody stopped it (pid 7, started at noon).',
      ['mirror is not running: it died, nobody stopped it (pid 7,', '  started at noon).'],
    ],
    ['Short.\n  mirror up   (a note)', ['Short.', '  mirror up   (a note)']],
  ])('%s', (text, lines) => {
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
