import { MirrorError, exitCode } from '../lib/errors.ts'

/** Somebody would have to agree, and nobody is there to be asked. */
export class UnaskedError extends MirrorError {
  constructor() {
    super('Not a terminal: pass --yes to apply, or --dry-run to preview.', {
      exit: exitCode.usage,
      hints: ['--yes   (apply without asking)', '--dry-run   (only show what would be done)'],
    })
  }
}
