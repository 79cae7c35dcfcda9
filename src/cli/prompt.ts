import { MirrorError, exitCode } from '../lib/errors.ts'

/** Questions to a person at a terminal. */
export interface Prompt {
  /** `problem`: what is wrong with an answer, if anything. */
  ask(question: string, options: { default: string; problem?: (answer: string) => string | undefined }): Promise<string>
  confirm(question: string): Promise<boolean>
  /** One of several. */
  choose<T>(question: string, choices: readonly Choice<T>[]): Promise<T>
  /** Any of several, all of them at first. */
  pick<T>(question: string, choices: readonly Choice<T>[]): Promise<T[]>
}

export interface Choice<T> {
  readonly name: string
  readonly value: T
}

/** Undefined where nobody could answer. */
export function createPrompt(input: { isTTY?: boolean }, output: { isTTY?: boolean }): Prompt | undefined {
  if (!input.isTTY || !output.isTTY) return undefined

  return {
    ask: (message, { default: preset, problem }) =>
      put({ type: 'input', message, default: preset, validate: (text: string) => problem?.(text) ?? true }),
    confirm: (message) => put({ type: 'confirm', message, default: true }),
    choose: (message, choices) => put({ type: 'select', message, choices: [...choices] }),
    pick: (message, choices) =>
      put({ type: 'checkbox', message, choices: choices.map((choice) => ({ ...choice, checked: true })) }),
  }
}

async function put<T>(question: object): Promise<T> {
  const { default: inquirer } = await import('inquirer')
  try {
    const { answer } = (await inquirer.prompt([{ name: 'answer', ...question } as never])) as { answer: T }
    return answer
  } catch (error) {
    // On a terminal that is being asked at, Ctrl-C is no signal but this.
    if (!(error instanceof Error) || error.name !== 'ExitPromptError') throw error
    throw new MirrorError('Interrupted: nothing was done.', { exit: exitCode.interrupted, cause: error })
  }
}
