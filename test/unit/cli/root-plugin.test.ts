import { Plugin } from '@oclif/core'
import { expect, test } from 'vitest'
import { readRootPlugin } from '../../../src/cli/main.ts'
import { packageRoot } from '../../../src/lib/package-root.ts'

test('the plugin of the package equals the one that the framework finds by itself', async () => {
  const theirs = new Plugin({ root: packageRoot(), type: 'core', isRoot: true })
  await theirs.load()
  const ours = readRootPlugin(packageRoot())

  const { name, alias, version, root, pjson, type, moduleType, isRoot, valid, hasManifest, hooks } = theirs
  const found = { name, alias, version, root, pjson, type, moduleType, isRoot, valid, hasManifest, hooks }
  expect(ours).toMatchObject(found)
  expect(ours.topics).toEqual(theirs.topics)
  expect(ours.commandIDs).toEqual(theirs.commandIDs)
  expect(JSON.parse(JSON.stringify(ours.commands))).toEqual(JSON.parse(JSON.stringify(theirs.commands)))
})
