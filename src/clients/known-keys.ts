/** What dockerd reads in its file; it refuses all else. https://docs.docker.com/reference/cli/dockerd/#daemon-configuration-file */
export const dockerdKeys: ReadonlySet<string> = setOf(`
  allow-direct-routing allow-nondistributable-artifacts api-cors-header authorization-plugins bip bip6 bridge
  bridge-accept-fwmark builder cgroup-parent cluster-advertise cluster-store cluster-store-opts containerd
  containerd-namespace containerd-plugins-namespace containerd-plugin-namespace cpu-rt-period cpu-rt-runtime
  cri-containerd data-root debug default-address-pools default-cgroupns-mode default-gateway default-gateway-v6
  default-ipc-mode default-network-opts default-runtime default-shm-size default-ulimits deprecated-key-path
  disable-legacy-registry dns dns-opts dns-search exec-opts exec-root experimental features firewall-backend
  fixed-cidr fixed-cidr-v6 graph group host host-gateway-ip host-gateway-ips hosts http-proxy https-proxy icc
  init init-path insecure-registries ip ip-forward ip-forward-no-drop ip-masq iptables ip6tables ipv6 isolation
  labels live-restore log-driver log-format log-level log-opts max-concurrent-downloads max-concurrent-uploads
  max-download-attempts metrics-addr min-api-version mtu network-control-plane-mtu network-diagnostic-port
  no-new-privileges no-proxy node-generic-resources oom-score-adjust pidfile proxies raw-logs registry-mirrors
  root rootless runtimes seccomp-profile selinux-enabled shutdown-timeout storage-driver storage-opts
  swarm-default-advertise-addr tls tlscacert tlscert tlskey tlsverify userland-proxy userland-proxy-path
  userns-remap validate
`)

/** What buildkitd reads at the top of its file. https://github.com/moby/buildkit/blob/master/cmd/buildkitd/config/config.go */
export const buildkitdKeys: ReadonlySet<string> = setOf(`
  debug trace root insecure-entitlements log grpc otel cdi worker workers registry dns history frontend system
  provenanceEnvDir cache proxy
`)

/** What k3s reads at the top of a registries.yaml. https://docs.k3s.io/installation/private-registry */
export const registriesKeys: ReadonlySet<string> = setOf('mirrors configs auths')

function setOf(words: string): ReadonlySet<string> {
  return new Set(words.trim().split(/\s+/))
}
