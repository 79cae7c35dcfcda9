/** Limits the characters of the text of a warning. */
const maxLength = 300

/**
 * Formats the value of a `Warning` header, which podman, skopeo, regclient and oras show to their user. The text may contain messages of
 * an upstream: anything but printable ASCII is replaced.
 * https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#warnings
 */
export function formatWarning(text: string): string {
  const plain = text
    .replaceAll(/[\u2018\u2019]/g, "'")
    .replaceAll(/[\u201c\u201d]/g, '"')
    .replaceAll('\u2026', '...')
    .replaceAll(/\s+/g, ' ')
    .replaceAll(/[^\x20-\x7e]+/g, '?')
    .trim()
  // Escape before the limit applies, because it is one of the whole value, and never cut an escape in two.
  const escaped = plain.replaceAll(/["\\]/g, String.raw`\$&`)
  const cut = escaped.length <= maxLength ? escaped : `${escaped.slice(0, maxLength - 3).replace(/\\+$/, '')}...`
  return `299 - "${cut}"`
}
