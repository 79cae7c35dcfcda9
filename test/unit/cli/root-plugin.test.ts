import { Plugin } from '@oclif/core'
import { expect, test } from 'vitest'
import { readRootPlugin } from '../../../src/cli/main.ts'
import { findPackageRoot } from '../../../src/lib/fs.ts'

test('the plugin of the package equals the one that the framework finds by itself', async () => {
  const frameworkPlugin = new Plugin({ root: findPackageRoot(), type: 'core', isRoot: true })
  await frameworkPlugin.load()
  const ownPlugin = readRootPlugin(findPackageRoot())

  const { name, alias, version, root, pjson, type, moduleType, isRoot, valid, hasManifest, hooks } = frameworkPlugin
  const found = { name, alias, version, root, pjson, type, moduleType, isRoot, valid, hasManifest, hooks }
  expect(ownPlugin).toMatchObject(found)
  expect(ownPlugin.topics).toEqual(frameworkPlugin.topics)
  expect(ownPlugin.commandIDs).toEqual(frameworkPlugin.commandIDs)
  expect(JSON.parse(JSON.stringify(ownPlugin.commands))).toEqual(JSON.parse(JSON.stringify(frameworkPlugin.commands)))
})
