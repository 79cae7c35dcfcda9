import { MirrorError, exitCode } from '../lib/errors.ts'

/** Questions to a person at a terminal. */
export interface Prompt {
  /** `problem`: what is wrong with an answer, if anything. */
  ask(question: string, options: { default: string; problem?: (answer: string) => string | undefined }): Promise<string>
}

/** Undefined where nobody could answer. */
export function createPrompt(input: { isTTY?: boolean }, output: { isTTY?: boolean }): Prompt | undefined {
  if (!input.isTTY || !output.isTTY) return undefined
  return {
    async ask(question, { default: preset, problem }) {
      const { default: inquirer } = await import('inquirer')
      try {
        const { answer } = await inquirer.prompt<{ answer: string }>([
          {
            type: 'input',
            name: 'answer',
            message: question,
            default: preset,
            validate: (text: string) => problem?.(text) ?? true,
          },
        ])
        return answer
      } catch (error) {
        // On a terminal that is being asked at, Ctrl-C is no signal but this.
        if (!(error instanceof Error) || error.name !== 'ExitPromptError') throw error
        throw new MirrorError('Interrupted: nothing was done.', { exit: exitCode.interrupted, cause: error })
      }
    },
  }
}
