# The virtual machine in which the scenarios run: it has a regtest node as bitcoind.service, both exporters, and a
# bitcoin-cli that uses the node's data directory.
{ lib, pkgs, ... }:
let
  node = lib.getExe' pkgs.bitcoin-node "bitcoin-node";
  cli = pkgs.writeShellScriptBin "bitcoin-cli" ''
    exec ${lib.getExe' pkgs.bitcoin-node "bitcoin-cli"} -regtest -datadir=/var/lib/bitcoind -rpcport=18443 \
      -rpcwait -rpcwaittimeout=30 "$@"
  '';
in
{
  environment.systemPackages = [
    cli
    pkgs.bitcoind-exporter
    pkgs.bitcoin-node
    pkgs.curl
    pkgs.openssl
    pkgs.prometheus
    pkgs.python3
    pkgs.util-linux
  ];
  users.users.bitcoin = {
    isSystemUser = true;
    group = "bitcoin";
  };
  users.groups.bitcoin = { };
  # The node's service does not start at boot, because each scenario starts the node itself.
  systemd.services.bitcoind.serviceConfig = {
    User = "bitcoin";
    RuntimeDirectory = "bitcoind";
    StateDirectory = "bitcoind";
    ExecStart = "${node} -regtest -datadir=/var/lib/bitcoind -ipcbind=unix:/run/bitcoind/node.sock -listen=0 -rpcport=18443 -printtoconsole=0";
  };
  services.bitcoind-ipc-exporter = {
    enable = true;
    socketPath = "/run/bitcoind/node.sock";
    after = [ "bitcoind.service" ];
    bindsTo = [ "bitcoind.service" ];
  };
  # Prometheus does not start at boot, because the scenario `monitoring-stack` starts it.
  systemd.services.prometheus.wantedBy = lib.mkForce [ ];
  services.prometheus = {
    enable = true;
    listenAddress = "127.0.0.1";
    globalConfig.scrape_interval = "1s";
    scrapeConfigs = [
      {
        job_name = "bitcoind-ipc";
        static_configs = [ { targets = [ "127.0.0.1:9332" ]; } ];
      }
      {
        job_name = "bitcoind-usdt";
        static_configs = [ { targets = [ "127.0.0.1:9435" ]; } ];
      }
    ];
  };
  services.bitcoind-usdt-exporter = {
    enable = true;
    bitcoind = node;
    after = [ "bitcoind.service" ];
  };
}
