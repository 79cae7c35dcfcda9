import { networkInterfaces } from 'node:os'

/** An address of this machine that is not loopback; undefined on a machine without any. */
export const outsideAddress = Object.values(networkInterfaces())
  .flat()
  .find((address) => address && !address.internal && address.family === 'IPv4')?.address
