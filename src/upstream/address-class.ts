import { BlockList, isIP } from 'node:net'

/** How far an address reaches, from everywhere to this link only. */
export type AddressClass = 'public' | 'private' | 'loopback' | 'link-local'

const ranks: Record<AddressClass, number> = { public: 0, private: 1, loopback: 2, 'link-local': 3 }

// 198.18.0.0/15 is left out on purpose: VPN clients answer every DNS name with an address of it.
const ranges: [AddressClass, string[]][] = [
  ['loopback', ['127.0.0.0/8', '0.0.0.0/8', '::1/128', '::/128']],
  // Multicast and reserved addresses are no place for a registry either, and get the strictest class.
  ['link-local', ['169.254.0.0/16', '224.0.0.0/3', 'fe80::/10', 'ff00::/8']],
  [
    'private',
    ['10.0.0.0/8', '172.16.0.0/12', '192.168.0.0/16', '100.64.0.0/10', '192.0.0.0/24', 'fc00::/7', 'fec0::/10'],
  ],
]

const lists = ranges.map(([addressClass, subnets]) => {
  const list = new BlockList()
  for (const subnet of subnets) {
    const [network, prefix] = subnet.split('/')
    list.addSubnet(network!, Number(prefix), family(network!))
  }
  return [addressClass, list] as const
})

/** The class of an IP address; an IPv4 address mapped into IPv6 counts as what it is. */
export function classifyAddress(address: string): AddressClass {
  const bare = address.split('%', 1)[0]!
  return lists.find(([, list]) => list.check(bare, family(bare)))?.[0] ?? 'public'
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

function family(address: string): 'ipv4' | 'ipv6' {
  return isIP(address) === 6 ? 'ipv6' : 'ipv4'
}
