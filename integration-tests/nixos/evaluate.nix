# What module.nix makes of a configuration, with no more of NixOS than nixpkgs' lib: the units' settings.
{ lib }:
let
  any = lib.mkOption {
    type = lib.types.attrs;
    default = { };
  };
  stubs.options = {
    assertions = lib.mkOption {
      type = lib.types.listOf lib.types.attrs;
      default = [ ];
    };
    networking.hostName = lib.mkOption { default = "machine"; };
    services.bitcoind = any;
    systemd.services = lib.mkOption { type = lib.types.attrsOf lib.types.attrs; };
    systemd.sockets = lib.mkOption { type = lib.types.attrsOf lib.types.attrs; };
  };
  package = {
    type = "derivation";
    name = "bitcoind-exporter";
    outPath = "/nix/store/exporter";
  };
  evaluate =
    configuration:
    let
      inherit
        (lib.evalModules {
          modules = [
            ../../module.nix
            stubs
            configuration
            { _module.args.pkgs.bitcoind-exporter = package; }
          ];
        })
        config
        ;
    in
    {
      failed = map (it: it.message) (lib.filter (it: !it.assertion) config.assertions);
      services = lib.mapAttrs (
        _: unit: unit.serviceConfig // { inherit (unit) wantedBy bindsTo; }
      ) config.systemd.services;
      sockets = lib.mapAttrs (_: unit: unit.socketConfig or null) config.systemd.sockets;
    };
in
{
  # By default systemd connects, and the exporter has a user of its own.
  default = evaluate {
    services.bitcoind-ipc-exporter = {
      enable = true;
      socketPath = "/run/bitcoind/node.sock";
      bindsTo = [ "bitcoind.service" ];
    };
  };
  # The configuration of ipc-exporter-rust, unchanged.
  as-before = evaluate {
    services.bitcoind-ipc-exporter = {
      enable = true;
      inherit package;
      socketPath = "/var/lib/bitcoind-mainnet/node.sock";
      user = "bitcoind-mainnet";
      group = "bitcoind-mainnet";
      after = [ "bitcoind-mainnet.service" ];
      bindsTo = [ "bitcoind-mainnet.service" ];
    };
  };
  # A node of nixpkgs' module: its user is known.
  known-owner = evaluate {
    services.bitcoind.main = {
      enable = true;
      dataDir = "/var/lib/bitcoind-main";
      user = "bitcoind-main";
      group = "bitcoind-main";
    };
    services.bitcoind-ipc-exporter = {
      enable = true;
      socketPath = "/var/lib/bitcoind-main/node.sock";
    };
  };
  nobody = evaluate {
    services.bitcoind-ipc-exporter = {
      enable = true;
      socketPath = "/run/bitcoind/node.sock";
      openFile = false;
    };
  };
  usdt = evaluate {
    services.bitcoind-usdt-exporter = {
      enable = true;
      bitcoind = "/run/current-system/sw/bin/bitcoin-node";
      tracepoints = [
        "fibre"
        "net"
      ];
      webConfigFile = "/run/secrets/web.yml";
    };
  };
}
