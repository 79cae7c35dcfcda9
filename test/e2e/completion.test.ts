import { describe, expect, inject, test } from 'vitest'
import { completeInFish, prepareCompletion, typeInShell } from '../support/complete-in-shell.ts'

const { missing } = inject('e2e')
const names = {
  cached: ['docker.io/library/alpine:3.20', 'ghcr.io/owner/app:1'],
  pushed: ['team/tool:old-1', 'registry/app:1'],
}

describe.skipIf(missing !== undefined)('the completion in a real zsh', () => {
  test.each([
    ['mirror registry rm team/t\t', ['registry', 'rm', 'team/tool:old-1']],
    ['mirror registry rm team/tool:\t', ['registry', 'rm', 'team/tool:old-1']],
    ["mirror registry rm 'team/tool:o\t", ['registry', 'rm', 'team/tool:old-1']],
    ['mirror configure --scope=u\t', ['configure', '--scope=user']],
    ['mirror cache rm "$(touch evil)" alpine:3\t --dry\t', ['cache', 'rm', '', 'alpine:3.20', '--dry-run']],
  ])('of %j gives the words %j', async (line, expected) => {
    expect(await typeInShell('zsh', await prepareCompletion(names), line)).toEqual(expected)
  })
})

describe.skipIf(missing !== undefined)('the completion in a real fish', () => {
  test.each([
    ['mirror registry rm team/', ['team/tool:old-1']],
    ['mirror registry rm team/tool:', ['team/tool:old-1']],
    ['mirror configure docker --scope ', ['system', 'user']],
    ['mirror cache rm alpine:3', ['alpine:3.20']],
    ['mirror sta', [expect.stringMatching(/^status\t.+/)]],
  ])('of %j offers %j', async (line, expected) => {
    expect((await completeInFish(await prepareCompletion(names), line)).toSorted()).toEqual(expected)
  })
})
