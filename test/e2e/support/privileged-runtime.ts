import { chmod, writeFile } from 'node:fs/promises'
import { join } from 'node:path'

// Takes one capability out of what runc is told to give: `--privileged` means all of them, and runc refuses to give what the
// machine itself lacks.
const wrapper = `#!/bin/sh
prev=
for a in "$@"; do
  case "$prev" in --bundle|-b) f="$a/config.json";; --process|-p) f="$a";; *) f=;; esac
  [ -n "$f" ] && [ -f "$f" ] && sed -i -E 's/"CAP_SYS_RESOURCE",//g; s/,"CAP_SYS_RESOURCE"//g' "$f"
  prev="$a"
done
exec runc "$@"
`

/** Settings of a dockerd that can run privileged containers on machines without CAP_SYS_RESOURCE, too. */
export async function privilegedRuntime(folder: string): Promise<object> {
  const path = join(folder, 'runc-privileged')
  await writeFile(path, wrapper)
  await chmod(path, 0o755)
  return { runtimes: { privileged: { path } }, 'default-runtime': 'privileged' }
}
