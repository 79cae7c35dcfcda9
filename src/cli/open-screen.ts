import { renderFrame } from './render-frame.ts'

const enter = '\x1b[?1049h\x1b[?25l'
const leave = '\x1b[?25h\x1b[?1049l'
/** What ends a program that has no handler of its own. With SIGHUP the terminal is gone, and nothing is left to restore. */
const endings = ['SIGTERM', 'SIGQUIT'] as const

/** A screen of the terminal's for frames, which take each other's place; what was there before comes back with `close`. */
export interface Screen {
  show(text: string): void
  close(): void
}

/** Opens one. It is closed on every way out of the program that it can know of, and left while the program is suspended. */
export function openScreen(terminal: NodeJS.WriteStream): Screen {
  let isOpen = true
  const close = () => {
    if (!isOpen) return
    isOpen = false
    process.off('exit', close).off('SIGTSTP', suspend).off('SIGCONT', resume)
    for (const signal of endings) process.off(signal, end)
    terminal.write(leave)
  }
  const end = (signal: NodeJS.Signals) => {
    close()
    process.kill(process.pid, signal)
  }
  const suspend = () => {
    terminal.write(leave)
    process.kill(process.pid, 'SIGSTOP')
  }
  const resume = () => void terminal.write(enter)
  process.on('exit', close).on('SIGTSTP', suspend).on('SIGCONT', resume)
  for (const signal of endings) process.on(signal, end)
  terminal.write(enter)
  return {
    show: (text) => void terminal.write(renderFrame(text, terminal.columns || 80, terminal.rows || 24)),
    close,
  }
}
