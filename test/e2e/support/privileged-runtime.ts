import { chmod, writeFile } from 'node:fs/promises'
import { join } from 'node:path'

// Removes one capability from the configuration of runc, because `--privileged` asks for all of them, and runc refuses those
// that the machine does not have.
const wrapper = `#!/bin/sh
prev=
for a in "$@"; do
  case "$prev" in --bundle|-b) f="$a/config.json";; --process|-p) f="$a";; *) f=;; esac
  [ -n "$f" ] && [ -f "$f" ] && sed -i -E 's/"CAP_SYS_RESOURCE",//g; s/,"CAP_SYS_RESOURCE"//g' "$f"
  prev="$a"
done
exec runc "$@"
`

/** Returns settings of a dockerd that runs privileged containers also on machines without CAP_SYS_RESOURCE. */
export async function privilegedRuntime(folder: string): Promise<object> {
  const path = join(folder, 'runc-privileged')
  await writeFile(path, wrapper)
  await chmod(path, 0o755)
  return { runtimes: { privileged: { path } }, 'default-runtime': 'privileged' }
}
