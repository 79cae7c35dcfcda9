import { describe, expect, test } from 'vitest'
import {
  classifyAddress,
  createAddressGuard,
  isMorePrivate,
  getLiteralAddress,
  type LookupAll,
  mayReceiveCredential,
  resolveRedirect,
  findRepository,
} from '../../../src/upstream/trust.ts'

const trusts = (upstream: string, realm: string, tokenHosts: string[] = []) =>
  mayReceiveCredential(new URL(realm), new URL(upstream), tokenHosts)

describe('a realm that may receive the credential', () => {
  test.each([
    ['on the same host and port', 'https://registry.example', 'https://registry.example/token'],
    ['on the same host and port over http', 'http://127.0.0.1:5000', 'http://127.0.0.1:5000/token'],
    ['on the same registrable domain', 'https://registry-1.docker.io', 'https://auth.docker.io/token'],
    ['on another port of the same domain', 'https://registry.corp.example', 'https://registry.corp.example:8443/token'],
    ['where NVIDIA keeps it', 'https://nvcr.io', 'https://authn.nvidia.com/token'],
  ])('is one %s', (_, upstream, realm) => {
    expect(trusts(upstream, realm)).toBe(true)
  })

  test('is one on a host that the user named, by its port when it has one', () => {
    expect(trusts('https://a.example', 'https://auth.other.example/token', ['Auth.other.example'])).toBe(true)
    expect(trusts('https://a.example', 'https://auth.other.example:444/token', ['auth.other.example:444'])).toBe(true)
    expect(trusts('https://a.example', 'https://auth.other.example:444/token', ['auth.other.example'])).toBe(false)
  })
})

describe('a realm that may not receive the credential', () => {
  test.each([
    ['on a foreign host', 'https://registry.example', 'https://evil.test/token'],
    ['on a host that only ends alike', 'https://docker.io', 'https://evildocker.io/token'],
    ['on another customer of one public suffix', 'https://me.github.io', 'https://you.github.io/token'],
    ['over http when the upstream is https', 'https://registry.example', 'http://registry.example/token'],
    ['over http on a sister host', 'http://registry.corp.example', 'http://auth.corp.example/token'],
    ['on another port of a literal address', 'https://10.0.0.1:5000', 'https://10.0.0.1:5001/token'],
    ['on another port of localhost', 'https://localhost:5000', 'https://localhost:5001/token'],
    ['on another literal address', 'https://10.0.0.1', 'https://10.0.0.2/token'],
    ['where NVIDIA keeps it, for anybody else', 'https://registry.example', 'https://authn.nvidia.com/token'],
    ['of another scheme', 'https://registry.example', 'ftp://registry.example/token'],
  ])('is one %s', (_, upstream, realm) => {
    expect(trusts(upstream, realm)).toBe(false)
  })

  test('is one over http on a named host, when the upstream is https', () => {
    expect(trusts('https://a.example', 'http://auth.example', ['auth.example'])).toBe(false)
  })
})

describe('a redirect', () => {
  test('may be relative', () => {
    expect(String(resolveRedirect(new URL('https://a.example/v2/x'), '../y?z=1'))).toBe('https://a.example/y?z=1')
  })

  test.each([
    ['https://a.example', 'http://a.example/x'],
    ['https://a.example', 'file:///etc/passwd'],
    ['https://a.example', 'https://user:secret@b.example/'],
    ['https://a.example', 'https://'],
  ])('from %s to %s is refused', (from, to) => {
    expect(typeof resolveRedirect(new URL(from), to)).toBe('string')
  })
})

test.each([
  ['https://a.example/v2/team/app/blobs/sha256:0', 'team/app'],
  ['https://a.example/v2/team/app/manifests/v1?ns=docker.io', 'team/app'],
  // Treats these as URLs of a registry and not of storage, although a log redacts parts of them.
  ['https://a.example/v2/team/app/manifests/v1?ns=docker.io;x', 'team/app'],
  ['https://a.example/v2/app/blobs/sha256:0?from=me:hush@b', 'app'],
  ['https://a.example/v2/token=x/app/tags/list?n=100&last=ghp_0123456789', 'token=x/app'],
  ['https://a.example/v2/app/blobs/sha256:0?x=ab', 'app'],
  ['https://a.example/v2/app/blobs/sha256:0?x=abc', undefined],
  ['https://a.example/v2/app/blobs/sha256:0?X-Amz-Signature=hush', undefined],
  ['https://a.example/v2/app/blobs/sha256:0?aHVzaC1o', undefined],
  ['https://a.example/v2/app/blobs/sha256:0#hush', undefined],
  ['https://me@a.example/v2/app/blobs/sha256:0', undefined],
  ['https://a.example/bucket/sha256:0', undefined],
])('the repository in %s is %s, which decides where its token is requested', (url, expected) => {
  expect(findRepository(new URL(url))).toBe(expected)
})

describe('addresses', () => {
  test.each([
    ['8.8.8.8', 'public'],
    ['2606:4700::1', 'public'],
    ['198.18.0.7', 'public'],
    ['10.1.2.3', 'private'],
    ['172.31.0.1', 'private'],
    ['192.168.1.1', 'private'],
    // Classifies the addresses at which clouds give a machine its credentials as link-local.
    ['100.100.100.200', 'link-local'],
    ['100.100.100.201', 'private'],
    ['192.0.0.192', 'link-local'],
    ['192.0.0.193', 'private'],
    ['fd00:ec2::254', 'link-local'],
    ['fd00:ec2::23', 'link-local'],
    ['fd00:ec2::253', 'private'],
    ['fd20:ce::254', 'link-local'],
    ['fd20:ce::255', 'private'],
    ['::ffff:100.100.100.200', 'link-local'],
    ['64:ff9b::192.0.0.192', 'link-local'],
    ['127.8.8.8', 'loopback'],
    ['0.0.0.0', 'loopback'],
    ['::1', 'loopback'],
    ['::ffff:127.0.0.1', 'loopback'],
    ['::ffff:169.254.169.254', 'link-local'],
    ['169.254.169.254', 'link-local'],
    ['fe80::1%eth0', 'link-local'],
    ['255.255.255.255', 'link-local'],
    ['::', 'loopback'],
    ['0:0:0:0:0:0:0:1', 'loopback'],
    ['0.1.2.3', 'loopback'],
    ['192.0.0.8', 'private'],
    ['100.127.255.255', 'private'],
    ['100.128.0.1', 'public'],
    ['172.32.0.1', 'public'],
    ['169.253.255.255', 'public'],
    ['240.0.0.1', 'link-local'],
    ['224.0.0.251', 'link-local'],
    ['192.0.2.1', 'public'],
    ['198.51.100.1', 'public'],
    ['203.0.113.1', 'public'],
    ['168.63.129.16', 'link-local'],
    ['168.63.129.17', 'public'],
    ['fec0::1', 'private'],
    ['fd12:3456::1', 'private'],
    ['febf::1%2', 'link-local'],
    ['ff02::1', 'link-local'],
    ['2001:db8::1', 'public'],
    ['3fff::1', 'public'],
    ['2001:2::1', 'link-local'],
    ['2001:4860:4860::8888', 'public'],
    ['100::1', 'link-local'],
    ['4000::1', 'link-local'],
    ['no address', 'link-local'],
    ['', 'link-local'],
    ['::ffff:8.8.8.8', 'public'],
    ['::ffff:a00:1', 'private'],
    ['::ffff:7f00:1', 'loopback'],
    ['0:0:0:0:0:ffff:192.168.0.1', 'private'],
    ['::FFFF:10.0.0.1%eth0', 'private'],
    ['::127.0.0.1', 'loopback'],
    ['::10.0.0.1', 'private'],
    ['::a9fe:a9fe', 'link-local'],
    ['::8.8.8.8', 'public'],
    ['::0.0.1.0', 'loopback'],
    ['::ffff:0:127.0.0.1', 'loopback'],
    ['::ffff:0:10.0.0.1', 'private'],
    ['::ffff:0:a9fe:a9fe', 'link-local'],
    ['::ffff:0:8.8.8.8', 'public'],
    ['64:ff9b::127.0.0.1', 'loopback'],
    ['64:ff9b::7f00:1', 'loopback'],
    ['64:ff9b::10.0.0.1', 'private'],
    ['64:ff9b::169.254.169.254', 'link-local'],
    ['64:ff9b::8.8.8.8', 'public'],
    ['64:ff9b:1::8.8.8.8', 'private'],
    ['64:ff9b:1::169.254.169.254', 'link-local'],
    ['64:ff9b:1:ffff::10.0.0.1', 'private'],
    ['64:ff9b:2::8.8.8.8', 'link-local'],
    ['2002:7f00:1::', 'loopback'],
    ['2002:7f00:1::1', 'loopback'],
    ['2002:a00:1::5', 'private'],
    ['2002:a9fe:a9fe::1', 'link-local'],
    ['2002:808:808::1', 'public'],
    ['2001:0:808:808:0:0:80ff:fffe', 'loopback'],
    ['2001:0:808:808:0:0:f5ff:fffe', 'private'],
    ['2001:0:7f00:1:0:0:f7f7:f7f7', 'loopback'],
    ['2001:0:808:808:0:0:f7f7:f7f7', 'public'],
    ['2606:4700::5efe:127.0.0.1', 'loopback'],
    ['2606:4700::5efe:a00:1', 'private'],
    ['2606:4700:0:0:200:5efe:169.254.169.254', 'link-local'],
    ['2606:4700::5efe:8.8.8.8', 'public'],
    ['fe80::5efe:8.8.8.8', 'link-local'],
    ['fd00::5efe:8.8.8.8', 'private'],
  ])('%s is %s', (address, expected) => {
    expect(classifyAddress(address)).toBe(expected)
  })

  test('are recognized in unusual spellings', () => {
    expect(getLiteralAddress(new URL('http://0x7f.1/'))).toBe('127.0.0.1')
    expect(getLiteralAddress(new URL('http://2852039166/'))).toBe('169.254.169.254')
    expect(getLiteralAddress(new URL('http://[::ffff:a00:1]/'))).toBe('::ffff:a00:1')
    expect(getLiteralAddress(new URL('http://registry.example/'))).toBeUndefined()
  })

  test('are ordered from public over private and loopback to link-local', () => {
    expect(isMorePrivate('link-local', 'loopback')).toBe(true)
    expect(isMorePrivate('private', 'loopback')).toBe(false)
    expect(isMorePrivate('loopback', 'private')).toBe(true)
    expect(isMorePrivate('private', 'public')).toBe(true)
  })
})

describe('the address guard', () => {
  const zone: Record<string, string[]> = {
    'registry.corp.example': ['10.0.0.5'],
    'storage.corp.example': ['10.0.0.6'],
    'rebind.example': ['127.0.0.1'],
    'mixed.example': ['169.254.169.254', '9.9.9.9'],
    'registry.public.example': ['9.9.9.9'],
  }
  const lookup: LookupAll = (hostname, _options, callback) =>
    callback(
      null,
      zone[hostname]!.map((address) => ({ address, family: 4 })),
    )
  const guard = (url: string, allowPrivate: boolean, tokenHosts: string[] = []) =>
    createAddressGuard({ host: 'it', url: new URL(url), allowPrivate, tokenHosts, lookup })
  const resolve = (from: ReturnType<typeof guard>, hostname: string) =>
    new Promise<string[]>((done, fail) =>
      from.lookup(hostname, { all: true }, (error, found) =>
        error ? fail(error) : done((found as { address: string }[]).map(({ address }) => address)),
      ),
    )

  test('lets a private upstream redirect to private addresses, and to nothing more private', async () => {
    const it = guard('https://registry.corp.example', true)
    await resolve(it, 'registry.corp.example')
    expect(await resolve(it, 'storage.corp.example')).toEqual(['10.0.0.6'])
    await expect(resolve(it, 'rebind.example')).rejects.toThrow(/more private address/)
  })

  test('lets a private upstream redirect to no metadata service of a cloud', async () => {
    const it = guard('https://registry.corp.example', true)
    await resolve(it, 'registry.corp.example')
    for (const host of ['100.100.100.200', '192.0.0.192', '168.63.129.16', '[fd00:ec2::254]', '[fd20:ce::254]'])
      expect(() => it.checkLiteral(new URL(`http://${host}/latest`)), host).toThrow(/more private address/)
    expect(() => it.checkLiteral(new URL('http://192.168.7.7/v2/'))).not.toThrow()
  })

  test('lets a public upstream redirect to public addresses only', async () => {
    const it = guard('https://registry.public.example', true)
    await resolve(it, 'registry.public.example')
    await expect(resolve(it, 'storage.corp.example')).rejects.toThrow(/more private address/)
    expect(await resolve(it, 'mixed.example')).toEqual(['9.9.9.9'])
  })

  test.each(['64:ff9b::a9fe:a9fe', '2002:7f00:1::1', '::127.0.0.1', '::ffff:0:10.0.0.1', '2606:4700::5efe:a00:1'])(
    'lets no upstream redirect to the private address in %s',
    async (address) => {
      const hidden: LookupAll = (_hostname, _options, callback) => callback(null, [{ address, family: 6 }])
      const url = new URL('https://registry.public.example')
      const it = createAddressGuard({ host: 'it', url, allowPrivate: true, tokenHosts: [], lookup: hidden })
      await expect(resolve(it, 'storage.example')).rejects.toThrow(/more private address/)
      expect(() => it.checkLiteral(new URL(`https://[${address}]/v2/`))).toThrow(/more private address/)
    },
  )

  test.each([
    ['a name, whose addresses are checked when it is resolved', 'https://rebind.example/v2/', true],
    ['a public address', 'https://9.9.9.9/v2/', true],
    ['an address that the user named', 'https://10.0.0.8:8443/v2/', true],
    ['an address that is as private as the upstream is now', 'https://10.0.0.6/v2/', false],
    ['an address that is refused', 'http://169.254.169.254/latest', false],
  ])('tells whether requests may go on unchecked to %s', async (_, url, isAlwaysAllowed) => {
    const it = guard('https://registry.corp.example', true, ['10.0.0.8:8443'])
    await resolve(it, 'registry.corp.example')
    expect(it.isAlwaysAllowed(new URL(url))).toBe(isAlwaysAllowed)
  })

  test.each([true, false])(
    'always allows the upstream’s own private address if it may have one: %s',
    (allowPrivate) => {
      const url = new URL('http://10.0.0.1:5000/v2/')
      expect(guard('http://10.0.0.1:5000', allowPrivate).isAlwaysAllowed(url)).toBe(allowPrivate)
    },
  )

  test('allows any address for hosts that the user named', async () => {
    const it = guard('https://registry.public.example', true, ['storage.corp.example:8443'])
    expect(await resolve(it, 'storage.corp.example')).toEqual(['10.0.0.6'])
  })

  test('requires a public address for an upstream that was not configured by name', async () => {
    await expect(resolve(guard('https://registry.corp.example', false), 'registry.corp.example')).rejects.toThrow(
      /configured by name/,
    )
    expect(() => guard('https://10.0.0.1', false).checkLiteral(new URL('https://10.0.0.1/v2/'))).toThrow(/by name/)
    expect(() => guard('https://10.0.0.1', true).checkLiteral(new URL('https://10.0.0.1/v2/'))).not.toThrow()
  })

  test('gives one address to sockets that ask for one', async () => {
    const it = guard('https://registry.public.example', false)
    const one = await new Promise((done) =>
      it.lookup('registry.public.example', {}, (_error, address, family) => done([address, family])),
    )
    expect(one).toEqual(['9.9.9.9', 4])
  })
})
