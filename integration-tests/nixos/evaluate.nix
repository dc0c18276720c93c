# Evaluates flake.nix, and evaluates module.nix with several configurations. This file has replacements for nixpkgs'
# packages and for the options of NixOS. `lib` is nixpkgs' lib or ./lib.nix.
{
  lib ? import ./lib.nix,
}:
let
  inherit (lib) mkOption types;
  option = type: mkOption { inherit type; };
  defaultsTo = default: type: mkOption { inherit default type; };
  texts = defaultsTo [ ] (types.listOf types.str);
  unit = {
    options = {
      description = defaultsTo "" types.str;
      after = texts;
      bindsTo = texts;
      partOf = texts;
      wantedBy = texts;
    };
  };

  # Replacements for the NixOS options that module.nix and machine.nix set.
  nixos = {
    options = {
      assertions = defaultsTo [ ] (types.listOf types.raw);
      environment.systemPackages = defaultsTo [ ] (types.listOf types.package);
      networking.hostName = defaultsTo "machine" types.str;
      services.prometheus = {
        enable = lib.mkEnableOption "Prometheus";
        listenAddress = option types.str;
        globalConfig.scrape_interval = option types.str;
        scrapeConfigs = defaultsTo [ ] (types.listOf types.raw);
      };
      systemd.services = defaultsTo { } (
        types.attrsOf (
          types.submodule {
            imports = [ unit ];
            options = {
              aliases = texts;
              serviceConfig = defaultsTo { } (types.attrsOf types.raw);
              startLimitBurst = defaultsTo null (types.nullOr types.raw);
              startLimitIntervalSec = defaultsTo null (types.nullOr types.raw);
            };
          }
        )
      );
      systemd.sockets = defaultsTo { } (
        types.attrsOf (
          types.submodule {
            imports = [ unit ];
            options.socketConfig = defaultsTo { } (types.attrsOf types.raw);
          }
        )
      );
      users.groups = defaultsTo { } (types.attrsOf types.raw);
      users.users = defaultsTo { } (types.attrsOf types.raw);
    };
  };
  # Replacements for two NixOS modules that run nodes: the options that module.nix reads, and options that it must ignore.
  nodes = {
    # nixos/modules/services/networking/bitcoind.nix of nixpkgs, which has options for several nodes, each with a name.
    nixpkgs.options.services.bitcoind = defaultsTo { } (
      types.attrsOf (
        types.submodule (
          { config, name, ... }:
          {
            options = {
              enable = lib.mkEnableOption "a node";
              dataDir = defaultsTo "/var/lib/bitcoind-${name}" types.str;
              user = defaultsTo "bitcoind-${name}" types.str;
              group = defaultsTo config.user types.str;
              rpc.users = defaultsTo { } (types.attrsOf types.raw);
            };
          }
        )
      )
    );
    # modules/bitcoind.nix of nix-bitcoin, which replaces nixpkgs' module and has options for one node.
    nix-bitcoin =
      { config, ... }:
      {
        options.services.bitcoind = {
          enable = lib.mkEnableOption "the node";
          listenWhitelisted = defaultsTo false types.bool;
          dataDir = defaultsTo "/var/lib/bitcoind" types.str;
          user = defaultsTo "bitcoin" types.str;
          group = defaultsTo config.services.bitcoind.user types.str;
          rpc.users = defaultsTo { } (types.attrsOf types.raw);
          # In nix-bitcoin, this option has no default value.
          cli = option types.package;
        };
      };
    none = { };
  };

  # A replacement for the function in nixos/lib/utils.nix.
  utils.escapeSystemdExecArgs =
    arguments:
    builtins.concatStringsSep " " (
      map (argument: builtins.replaceStrings [ "%" "$" ] [ "%%" "$$" ] (builtins.toJSON argument)) arguments
    );
  evalNixos =
    modules:
    (lib.evalModules {
      modules = [ nixos ] ++ modules;
      specialArgs = { inherit utils; };
    }).config;
  said = config: {
    failed = map (it: it.message) (builtins.filter (it: !it.assertion) config.assertions);
    services = builtins.mapAttrs (_: it: it.serviceConfig // { inherit (it) wantedBy bindsTo partOf; }) config.systemd.services;
    sockets = builtins.mapAttrs (_: it: it.socketConfig) config.systemd.sockets;
    # The list is sorted, because the order of merged lists is not specified.
    packages = builtins.sort builtins.lessThan (map (it: it.name) config.environment.systemPackages);
  };

  # A replacement for a package of nixpkgs: a value with the name and the arguments of the package.
  package = name: arguments: {
    type = "derivation";
    inherit name arguments;
    outPath = "/nix/store/${name}";
  };
  makePkgs =
    overlays:
    let
      names = [
        "boost"
        "capnproto"
        "cargo"
        "clippy"
        "cmake"
        "curl"
        "elfutils"
        "libevent"
        "libsystemtap"
        "linuxHeaders"
        "nixfmt"
        "openssl"
        "pkg-config"
        "prometheus"
        "python3"
        "rustfmt"
        "sqlite"
        "util-linux"
        "zlib"
      ];
      base = lib.genAttrs names (name: package name { }) // {
        inherit lib overlays;
        llvmPackages.clang-unwrapped = package "clang-unwrapped" { };
        mkShell = package "shell";
        rustPlatform.buildRustPackage = arguments: package arguments.pname arguments;
        stdenv.mkDerivation = arguments: package arguments.pname arguments;
        writeShellScriptBin = name: text: package name { inherit text; };
        extend = overlay: makePkgs (overlays ++ [ overlay ]);
        testers.runNixOSTest = runNixOSTest final;
      };
      final = builtins.foldl' (pkgs: overlay: pkgs // overlay final pkgs) base overlays;
    in
    final;
  # A replacement for nixos/lib/testing/nodes.nix and nixos/modules/misc/nixpkgs/read-only.nix: the machines use the `pkgs`
  # of the test, and the options nixpkgs.* of a machine are read-only.
  runNixOSTest =
    pkgs: test:
    let
      readOnly =
        { config, ... }:
        {
          options.nixpkgs.pkgs = option types.raw;
          options.nixpkgs.overlays = option (
            types.unique { message = "nixpkgs.overlays is set to read-only"; } types.raw
          );
          config._module.args.pkgs = builtins.seq config.nixpkgs.overlays config.nixpkgs.pkgs;
          config.nixpkgs = {
            inherit pkgs;
            inherit (pkgs) overlays;
          };
        };
    in
    said (evalNixos [
      readOnly
      test.nodes.machine
    ])
    // {
      inherit (test) name;
      script = builtins.stringLength test.testScript;
    };

  pkgs = makePkgs [ flake.overlays.default ];
  evaluate = evaluateWith nodes.none;
  evaluateWith =
    node: configuration:
    said (evalNixos [
      node
      ../../module.nix
      configuration
      { _module.args.pkgs = pkgs; }
    ]);

  flake = (import ../../flake.nix).outputs {
    self = flake // {
      outPath = "/source";
      shortRev = "0123abc";
    };
    nixpkgs = {
      inherit lib;
      legacyPackages.x86_64-linux = makePkgs [ ];
      legacyPackages.aarch64-linux = makePkgs [ ];
    };
    # An evaluation that uses this input fails. Only the package of the node may use the input.
    bitcoin-node-src = throw "bitcoin-node-src is fetched";
  };
  inherit (flake.packages.x86_64-linux) default bitcoin-node;
in
{
  # With the default options, systemd connects to the node's socket, and the exporter runs as its own user.
  default = evaluate {
    services.bitcoind-ipc-exporter = {
      enable = true;
      socketPath = "/run/bitcoind/node.sock";
      bindsTo = [ "bitcoind.service" ];
    };
  };
  # A configuration that was written for the NixOS module of ipc-exporter-rust, another exporter, must also work with
  # this module.
  as-before = evaluate {
    services.bitcoind-ipc-exporter = {
      enable = true;
      package = package "another-exporter" { };
      socketPath = "/var/lib/bitcoind-mainnet/node.sock";
      user = "bitcoind-mainnet";
      group = "bitcoind-mainnet";
      after = [ "bitcoind-mainnet.service" ];
      bindsTo = [ "bitcoind-mainnet.service" ];
    };
  };
  # Nodes that are configured with nixpkgs' module for bitcoind. By default, the exporter runs as the user of the node
  # whose socket it uses.
  known-owner = evaluateWith nodes.nixpkgs {
    services.bitcoind = {
      main.enable = true;
      signet = {
        enable = true;
        dataDir = "/srv/signet";
        group = "nodes";
      };
      off.dataDir = "/srv";
    };
    services.bitcoind-ipc-exporter = {
      enable = true;
      socketPath = "/srv/signet/signet/node.sock";
    };
  };
  other-owner = evaluateWith nodes.nixpkgs {
    services.bitcoind.main.enable = true;
    services.bitcoind-ipc-exporter = {
      enable = true;
      socketPath = "/run/bitcoind/node.sock";
    };
  };
  named-without-ipc = evaluateWith nodes.nixpkgs {
    services.bitcoind.main = {
      enable = true;
      rpc.users.exporter.passwordHMAC = "00$00";
    };
    services.bitcoind-ipc-exporter = {
      enable = true;
      rpc = {
        enable = true;
        user = "exporter";
        passwordFile = "/run/secrets/rpc-password";
      };
    };
  };
  # The node of nix-bitcoin, with an exporter that uses the node's socket, and with an exporter that uses HTTP.
  flat-owner = evaluateWith nodes.nix-bitcoin {
    services.bitcoind.enable = true;
    services.bitcoind-ipc-exporter = {
      enable = true;
      socketPath = "/var/lib/bitcoind/node.sock";
      environmentFile = "/run/secrets/exporter.env";
    };
  };
  flat-without-ipc = evaluateWith nodes.nix-bitcoin {
    services.bitcoind.enable = true;
    services.bitcoind-ipc-exporter = {
      enable = true;
      rpc = {
        enable = true;
        user = "exporter";
        passwordFile = "/run/secrets/rpc-password";
      };
    };
  };
  # An exporter that uses JSON-RPC over HTTP in addition to IPC, which Bitcoin Core 30 and 31 need.
  rpc-beside-ipc = evaluate {
    services.bitcoind-ipc-exporter = {
      enable = true;
      socketPath = "/run/bitcoind/node.sock";
      rpc = {
        enable = true;
        chain = "signet";
        cookieFile = "/var/lib/bitcoind/signet/.cookie";
      };
    };
  };
  without-ipc = evaluate {
    services.bitcoind-ipc-exporter = {
      enable = true;
      rpc = {
        enable = true;
        url = "http://127.0.0.1:18000";
        user = "exporter";
        passwordFile = "/run/secrets/rpc-password";
      };
    };
  };
  neither = evaluate { services.bitcoind-ipc-exporter.enable = true; };
  cookie-without-ipc = evaluate {
    services.bitcoind-ipc-exporter = {
      enable = true;
      rpc = {
        enable = true;
        cookieFile = "/var/lib/bitcoind/.cookie";
      };
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
      nodeName = "50% of $HOME";
      webConfigFile = "/run/secrets/web.yml";
      allowedHosts = [ "metrics.example.com" ];
    };
  };
  # The evaluation of these configurations must fail.
  errors =
    builtins.mapAttrs (_: configuration: !(builtins.tryEval (builtins.deepSeq (evaluate configuration) null)).success)
      {
        unknown-option.services.bitcoind-ipc-exporter.socket = "/run/bitcoind/node.sock";
        wrong-type.services.bitcoind-usdt-exporter = {
          enable = true;
          bitcoind = "/bitcoin-node";
          healthPort = "9436";
        };
        no-value.services.bitcoind-usdt-exporter.enable = true;
      };

  flake = {
    checks = flake.checks.x86_64-linux;
    formatter = flake.formatter.x86_64-linux.name;
    revision = default.arguments.env.BUILD_REVISION;
    version = default.arguments.version;
    exporters-post-install = default.arguments.postInstall;
    node-post-install = bitcoin-node.arguments.postInstall;
    build-headers = default.arguments.env.C_INCLUDE_PATH;
    shell-headers = flake.devShells.x86_64-linux.default.arguments.env.C_INCLUDE_PATH;
    # The evaluation of a machine that sets nixpkgs.overlays must fail in the test driver.
    overlays-in-a-machine-fail =
      !(builtins.tryEval (
        builtins.deepSeq ((makePkgs [ ]).testers.runNixOSTest {
          name = "";
          testScript = "";
          nodes.machine = {
            imports = [
              flake.nixosModules.default
              ./machine.nix
            ];
            nixpkgs.overlays = [ flake.overlays.default ];
          };
        }) null
      )).success;
  };
}
