import { run } from './run.ts'

/** Finds the URL from which this machine gets its own release. */
export async function debianMirror(): Promise<string> {
  const format = '$(ORIGIN) $(LABEL) $(COMPONENT) $(REPO_URI)'
  const targets = await run('apt-get', ['indextargets', '--format', format, 'Created-By: Packages'])
  const mirror = targets
    .split('\n')
    .map((line) => /^Debian Debian main (\S+)$/.exec(line)?.[1])
    .find((uri) => uri !== undefined)
  if (mirror === undefined) throw new Error('apt knows no mirror of Debian itself')
  return mirror
}
