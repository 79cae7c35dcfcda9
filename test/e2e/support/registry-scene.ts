import { expect } from 'vitest'
import type { StatusReport } from '../../../src/admin/api.ts'
import type { TestImage } from '../../support/images.ts'
import { runnableImage } from './runnable-image.ts'
import { type Scene, registryAddress, startScene } from './scene.ts'

export const application = `${registryAddress}/team/application`
export const sibling = `${registryAddress}/team/sibling`

/** Starts a scene with a push registry, and an image of Docker Hub to push. */
export async function startRegistryScene(mediaTypes: 'oci' | 'docker'): Promise<{ scene: Scene; image: TestImage }> {
  const image = await runnableImage(5, mediaTypes)
  const content = { 'library/runnable': { one: image } }
  const scene = await startScene({ registries: ['docker.io'], content, registry: true })
  return { scene, image }
}

/** Checks the counts of pushed content in `mirror status --json`, and returns all of them. */
export async function expectPushed(
  { mirror }: Scene,
  counts: Partial<StatusReport['registry']>,
): Promise<StatusReport['registry']> {
  const { endpoints, registry } = await mirror.status()
  expect(endpoints.registry).toStrictEqual([`http://${registryAddress}`])
  expect(registry).toMatchObject(counts)
  return registry
}
