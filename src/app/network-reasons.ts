/** Why nobody listens on a network, in the report of the mirror: nobody tells it of networks. */
export const silentEngine = 'the Docker engine does not answer'

/** Its engine knows no network of that name. */
export const absentNetwork = 'the network does not exist yet'
