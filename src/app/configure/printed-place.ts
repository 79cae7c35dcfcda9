import type { ClientHome } from '../../clients/address.ts'
import type { ConfigPlan, MirrorForClient } from '../../clients/client-config.ts'
import { localFiles } from '../../clients/files/local.ts'
import type { ClientPlace } from '../../clients/types.ts'

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
