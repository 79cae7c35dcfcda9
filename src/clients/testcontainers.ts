import type { ConfigPlan, MirrorForClient } from './client-config.ts'
import { isLoopback } from './is-loopback.ts'

/** Testcontainers puts a prefix before the names of Docker Hub's images; the Docker engine then pulls by that name. */
export function planTestcontainers({ cache, ca }: MirrorForClient): ConfigPlan {
  const { host, protocol } = new URL(cache)
  const prefix = `${host}/docker.io/`
  return {
    changes: [],
    notes: [
      'Only images of Docker Hub get the prefix; those of other registries come through the mirror where the engine does: mirror configure docker.',
      `Testcontainers for Java, Go and .NET also read it from ~/.testcontainers.properties: hub.image.name.prefix=${prefix}`,
    ],
    todo: [
      'set it where your tests run: env $(mirror configure testcontainers) npm test',
      ...(protocol === 'http:' && !isLoopback(cache)
        ? [`name ${host} under insecure-registries of the Docker engine, which pulls by that name`]
        : []),
      ...(ca !== undefined
        ? ["have the engine, which pulls by that name, trust the mirror's CA: mirror configure docker"]
        : []),
    ],
    output: `TESTCONTAINERS_HUB_IMAGE_NAME_PREFIX=${prefix}\n`,
  }
}
