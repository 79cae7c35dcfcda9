import { boolean } from '@oclif/core/flags'
import type { DashboardLink } from '../admin/dashboard/link.ts'
import { BaseCommand } from '../cli/base-command.ts'
import { jsonFlag } from '../cli/flags.ts'
import { exitCode, MirrorError } from '../lib/errors.ts'

export default class Dashboard extends BaseCommand {
  static override summary = 'Open the dashboard of the running mirror in the browser'
  static override description =
    'The page shows the traffic, the images and the clients. It may also remove images, check tags and pause upstreams, ' +
    'because the link of this command signs the browser in: it works once, within a minute. The address alone only shows.'
  static override examples = [
    '<%= config.bin %> <%= command.id %>',
    '<%= config.bin %> <%= command.id %> --no-open',
    '<%= config.bin %> <%= command.id %> --no-open --json | jq -r .link',
  ]
  static override flags = {
    'no-open': boolean({ description: 'print the link and open no browser' }),
    json: jsonFlag,
  }

  override async run(): Promise<void> {
    const { flags } = await this.parse(Dashboard)
    const surroundings = this.getSurroundings()
    const { createDashboardLink } = await import('../admin/dashboard/link.ts')
    const { openBrowser } = await import('../lib/process.ts')
    const { tellConfiguredClients } = await import('../clients/tell-mirror.ts')
    const link = await createDashboardLink(surroundings)
    if (link !== undefined) await tellConfiguredClients(surroundings)
    if (link === undefined)
      throw new MirrorError('mirror is not running, so there is no dashboard.', {
        exit: exitCode.notRunning,
        hints: ['mirror up'],
      })
    const address = `${link.url}#ticket=${link.ticket}`
    const opened = !flags['no-open'] && (await openBrowser(address, surroundings))
    if (flags.json) {
      const { url, expiresInSeconds, forwardedTo } = link
      this.printJson({ url, opened, ...(!opened && { link: address, expiresInSeconds }), forwardedTo })
    } else this.show(link, opened)
    if (link.forwardedTo === undefined) return
    this.info(`Forwarding ${link.url} to the mirror on ${link.forwardedTo} until Ctrl-C.`)
    await new Promise((resolve) => this.interrupted.addEventListener('abort', resolve, { once: true }))
    link.close()
  }

  private show({ url, ticket, expiresInSeconds }: DashboardLink, opened: boolean): void {
    if (opened) return this.report(`Opened ${url} in the browser.`)
    this.print(`${url}#ticket=${ticket}`)
    this.info(`Open this link in a browser within ${expiresInSeconds} seconds. It works once.`)
    if (!process.env['SSH_CONNECTION']) return
    const { port } = new URL(url)
    this.info(`To reach it from the machine you came from, run there: ssh -L ${port}:127.0.0.1:${port} HOST`)
  }
}
