import type { ClientHome } from '../../clients/client-address.ts'
import type { ConfigPlan, MirrorForClient } from '../../clients/client-config.ts'
import { localFiles } from '../../clients/local-files.ts'
import type { ClientPlace } from './client-adapter.ts'

/** A client that is told by flags, environment or a line of its own: all is printed, and nothing written. */
export function printedPlace(home: ClientHome, plan: (mirror: MirrorForClient) => ConfigPlan): ClientPlace {
  return {
    id: 'printed',
    title: 'what to set (on stdout)',
    details: {},
    home,
    files: localFiles,
    wants: { files: [], trees: [] },
    plan: (mirror) => plan(mirror),
    strip: () => [],
    reasons: [],
  }
}
