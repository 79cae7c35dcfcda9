/**
 * What Node is given to run the server. Half of the usual space for new objects: it is soon full of what a request has left,
 * and with all of it the process would be a tenth larger for nothing.
 */
export function serveArguments(program: string): string[] {
  return ['--max-semi-space-size=8', program, 'serve']
}
