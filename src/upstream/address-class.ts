import { BlockList, isIP } from 'node:net'

/** How far an address reaches, from everywhere to this link only. */
export type AddressClass = 'public' | 'private' | 'loopback' | 'link-local'

const ranks: Record<AddressClass, number> = { public: 0, private: 1, loopback: 2, 'link-local': 3 }

// 198.18.0.0/15 is left out on purpose: VPN clients answer every DNS name with an address of it. So are addresses for
// documentation: they lead nowhere.
const ranges: [AddressClass, string[]][] = [
  ['loopback', ['127.0.0.0/8', '0.0.0.0/8', '::1/128', '::/128']],
  [
    'link-local',
    [
      '169.254.0.0/16',
      'fe80::/10',
      // Machines in a cloud find their metadata and credentials there: of Azure, Alibaba, Oracle, AWS (EKS too), Google.
      '168.63.129.16/32',
      '100.100.100.200/32',
      '192.0.0.192/32',
      'fd00:ec2::254/128',
      'fd00:ec2::23/128',
      'fd20:ce::254/128',
      // Multicast, reserved and benchmark addresses are no place for a registry, and get the strictest class.
      '224.0.0.0/3',
      'ff00::/8',
      '2001:2::/48',
      '2001:10::/28',
      '2001:20::/28',
    ],
  ],
  [
    'private',
    ['10.0.0.0/8', '172.16.0.0/12', '192.168.0.0/16', '100.64.0.0/10', '192.0.0.0/24', 'fc00::/7', 'fec0::/10'],
  ],
]

const lists = ranges.map(([addressClass, subnets]) => {
  const list = new BlockList()
  for (const subnet of subnets) {
    const [network, prefix] = subnet.split('/')
    list.addSubnet(network!, Number(prefix), isIP(network!) === 6 ? 'ipv6' : 'ipv4')
  }
  return [addressClass, list] as const
})

/**
 * The class of an IP address. An IPv6 address that stands for an IPv4 one (mapped, translated, NAT64, 6to4, Teredo, ISATAP …)
 * is as near as that one is. What is no address gets the strictest class.
 */
export function classifyAddress(address: string): AddressClass {
  const bare = address.split('%', 1)[0]!
  if (isIP(bare) === 4) return classIn(bare, 'ipv4') ?? 'public'
  const bytes = bytesOf(bare)
  if (bytes === undefined) return 'link-local'
  const [own, embedded] = [classIn(bare, 'ipv6'), embeddedIn(bytes)]
  if (embedded === undefined) return own ?? (isGlobalUnicast(bytes) ? 'public' : 'link-local')
  return [own ?? embedded.least, ...embedded.addresses.map(classifyAddress)].reduce(nearer)
}

/** Whether an address of class `target` is nearer to us than one of class `base`, and so nothing `base` may send us to. */
export function isMorePrivate(target: AddressClass, base: AddressClass): boolean {
  return ranks[target] > ranks[base]
}

/** The IP address that stands in a URL in place of a name. The URL parser has already undone octal and decimal spellings. */
export function literalAddress(url: URL): string | undefined {
  const host = url.hostname.replace(/^\[(.*)\]$/, '$1')
  return isIP(host) ? host : undefined
}

function nearer(one: AddressClass, other: AddressClass): AddressClass {
  return isMorePrivate(other, one) ? other : one
}

function classIn(address: string, family: 'ipv4' | 'ipv6'): AddressClass | undefined {
  // An IPv4 address in IPv6 is looked at apart: the list would find the mapped form only.
  return lists.find(([, list]) => list.check(address, family))?.[0]
}

/** The IPv4 addresses that an IPv6 address stands for, and the class that it has at least; undefined where it stands for none. */
interface Embedded {
  readonly addresses: readonly string[]
  readonly least: AddressClass
}

function embeddedIn(bytes: Uint8Array): Embedded | undefined {
  const found = (at: number, least: AddressClass = 'public'): Embedded => ({ addresses: [ipv4At(bytes, at)], least })
  // `::`, `::1` are not compatible addresses: RFC 4291 §2.5.
  if (startsWith(bytes, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]) && !startsWith(bytes.subarray(12), [0, 0, 0]))
    return found(12)
  // Mapped: RFC 4291 §2.5.5.2; translated: RFC 2765 §2.1.
  if (startsWith(bytes, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff])) return found(12)
  if (startsWith(bytes, [0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0])) return found(12)
  // NAT64: RFC 6052; a network's own (RFC 8215) is that network's, wherever in it the IPv4 address stands.
  if (startsWith(bytes, [0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0])) return found(12)
  if (startsWith(bytes, [0, 0x64, 0xff, 0x9b, 0, 1])) return found(12, 'private')
  // 6to4: RFC 3056.
  if (startsWith(bytes, [0x20, 0x02])) return found(2)
  // Teredo: RFC 4380 §4, the server and, inverted, the client.
  if (startsWith(bytes, [0x20, 0x01, 0, 0])) {
    const client = bytes.subarray(12).map((byte) => byte ^ 0xff)
    return { addresses: [ipv4At(bytes, 4), ipv4At(client, 0)], least: 'public' }
  }
  // ISATAP: RFC 5214 §6.1, below any prefix.
  const identifier = bytes.subarray(8)
  if (startsWith(identifier, [0, 0, 0x5e, 0xfe]) || startsWith(identifier, [2, 0, 0x5e, 0xfe])) return found(12)
  return undefined
}

function startsWith(bytes: Uint8Array, start: readonly number[]): boolean {
  return start.every((byte, at) => bytes[at] === byte)
}

function ipv4At(bytes: Uint8Array, at: number): string {
  return bytes.subarray(at, at + 4).join('.')
}

/** 2000::/3, all that IANA has given away so far. */
function isGlobalUnicast([first = 0]: Uint8Array): boolean {
  return first >> 5 === 1
}

/** The 16 bytes of an IPv6 address; undefined for what is none. */
function bytesOf(address: string): Uint8Array | undefined {
  if (isIP(address) !== 6) return undefined
  const [head = '', tail] = address.split('::')
  const [first, last] = [groupsOf(head), groupsOf(tail ?? '')]
  const gap = tail === undefined ? [] : Array.from({ length: 16 - first.length - last.length }, () => 0)
  return Uint8Array.from([...first, ...gap, ...last])
}

function groupsOf(text: string): number[] {
  if (text === '') return []
  return text.split(':').flatMap((group) => {
    if (group.includes('.')) return group.split('.').map(Number)
    const value = Number.parseInt(group, 16)
    return [value >> 8, value & 0xff]
  })
}
