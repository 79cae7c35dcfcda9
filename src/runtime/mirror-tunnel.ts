import type { Duplex } from 'node:stream'
import { MirrorError, exitCode } from '../lib/errors.ts'
import { node } from './container-spec.ts'
import { DockerError, type ContainerEngine } from './container-engine.ts'

/** Joins its stdin and stdout with a port of the container; whoever hangs up ends it. */
const joined = (port: number) =>
  `const s=require('node:net').connect(${port},'127.0.0.1');` +
  `s.on('error',(e)=>{console.error(e.message);process.exit(1)});` +
  `s.pipe(process.stdout);process.stdin.pipe(s);` +
  `s.on('close',()=>process.exit(0));process.stdin.on('end',()=>s.destroy())`

/**
 * A connection to a port inside a container, through its engine: by a program in it, for an engine that is another machine's
 * publishes on that machine only. Throws a MirrorError (exit 4) when the container does not run, or its engine cannot be asked.
 */
export async function openTunnel(
  { containers }: Pick<ContainerEngine, 'containers'>,
  container: string,
  port: number,
): Promise<Duplex> {
  try {
    return await containers.converse(container, [node, '-e', joined(port)])
  } catch (error) {
    if (!(error instanceof DockerError)) throw error
    throw new MirrorError(`The mirror in the container cannot be reached: ${error.message}.`, {
      exit: exitCode.missing,
      hints: ['mirror logs', 'mirror up'],
      cause: error,
    })
  }
}
