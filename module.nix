# NixOS: services.bitcoind-ipc-exporter and services.bitcoind-usdt-exporter.
{
  config,
  lib,
  pkgs,
  utils,
  ...
}:
let
  inherit (lib) mkOption types;
  ipc = config.services.bitcoind-ipc-exporter;
  usdt = config.services.bitcoind-usdt-exporter;

  # The nodes of this machine: nixpkgs' module configures one node per name, nix-bitcoin's module configures a single
  # node.
  bitcoind = config.services.bitcoind or { };
  nodes = if bitcoind ? dataDir then [ bitcoind ] else lib.attrValues bitcoind;
  hasIpc = ipc.socketPath != null;
  owners = lib.filter (node: node.enable && hasIpc && lib.hasPrefix "${node.dataDir}/" ipc.socketPath) nodes;
  owner = if owners == [ ] then null else lib.head owners;

  units = names: mkOption {
    type = types.listOf types.str;
    default = [ ];
    description = "Units in `${names}=` of the service.";
  };

  common = name: {
    enable = lib.mkEnableOption name;
    package = mkOption {
      type = types.package;
      default = pkgs.bitcoind-exporter;
      defaultText = lib.literalExpression "pkgs.bitcoind-exporter, from the flake's overlay";
      description = "Package that contains the exporters.";
    };
    debug = mkOption {
      type = types.bool;
      default = false;
      description = "Whether to log a line for each event and each poll.";
    };
    webConfigFile = mkOption {
      type = types.nullOr types.str;
      default = null;
      description = "File with the settings of TLS and basic authentication, in the format of Prometheus' exporter-toolkit. systemd passes it to the service as a credential. Certificates in it need absolute paths that the service can read.";
    };
    allowedHosts = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "metrics.example.com" ];
      description = "Additional host names that the endpoint accepts in requests when it listens on loopback, e.g. a reverse proxy's.";
    };
    extraFlags = mkOption {
      type = types.listOf types.str;
      default = [ ];
      description = "Additional command-line arguments.";
    };
    environmentFile = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "/run/secrets/bitcoind-exporter.env";
      description = "File with environment variables for the service, e.g. `BITCOIND_IPC_EXPORTER_RPC_PASSWORD=…`.";
    };
    after = units "After";
    bindsTo = units "BindsTo";
  };

  # The same hardening as in the units in contrib/systemd.
  hardening = {
    UMask = "0777";
    NoNewPrivileges = true;
    PrivateDevices = true;
    DevicePolicy = "closed";
    PrivateTmp = true;
    PrivateIPC = true;
    ProtectSystem = "strict";
    ProtectHome = true;
    ProtectClock = true;
    ProtectControlGroups = true;
    ProtectHostname = true;
    ProtectKernelLogs = true;
    ProtectKernelModules = true;
    LockPersonality = true;
    MemoryDenyWriteExecute = true;
    RemoveIPC = true;
    RestrictNamespaces = true;
    RestrictRealtime = true;
    RestrictSUIDSGID = true;
    SystemCallArchitectures = "native";
    SystemCallErrorNumber = "EPERM";
    LimitNOFILE = 8192;
    MemoryMax = "512M";
    TasksMax = 64;
    Type = "notify";
    NotifyAccess = "main";
    WatchdogSec = 30;
    Restart = "on-failure";
    RestartSec = 2;
  };

  # The credentials of the service: { name = { file; flag; }; }. systemd expands %d to the folder of the service's
  # credentials.
  secrets =
    exporter:
    lib.filterAttrs (_: secret: secret.file != null) (
      {
        "web.yml" = { file = exporter.webConfigFile; flag = "--web.config.file"; };
      }
      // lib.optionalAttrs (exporter ? rpc && exporter.rpc.enable) {
        rpc-cookie = { file = exporter.rpc.cookieFile; flag = "--rpc-cookie-file"; };
        rpc-password = { file = exporter.rpc.passwordFile; flag = "--rpc-password-file"; };
      }
    );
  command =
    exporter: binary: flags:
    utils.escapeSystemdExecArgs (
      [ (lib.getExe' exporter.package binary) ]
      ++ flags
      ++ lib.concatMap (name: [ "--web.allowed-host" name ]) exporter.allowedHosts
      ++ exporter.extraFlags
    )
    + lib.concatStrings (lib.mapAttrsToList (name: secret: " ${secret.flag} %d/${name}") (secrets exporter));
  environment = exporter: lib.optionalAttrs (exporter.environmentFile != null) { EnvironmentFile = exporter.environmentFile; };
  credentials = exporter: {
    LoadCredential = lib.mapAttrsToList (name: secret: "${name}:${secret.file}") (secrets exporter);
  }
  # If the node does not run, no cookie exists. With SetCredential the exporter starts nevertheless, and exports
  # bitcoin_up 0.
  // lib.optionalAttrs (secrets exporter ? rpc-cookie) { SetCredential = "rpc-cookie:none"; };
in
{
  options.services.bitcoind-ipc-exporter = common "the Prometheus exporter of a Bitcoin node over IPC" // {
    socketPath = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "/var/lib/bitcoind-mainnet/node.sock";
      description = "Path of the node's IPC socket. `null` for a node without IPC, which needs {option}`rpc`.";
    };
    rpc = {
      enable = lib.mkEnableOption "JSON-RPC over HTTP on this machine, for data not available over IPC";
      chain = mkOption {
        type = types.enum [ "main" "test" "testnet4" "signet" "regtest" ];
        default = "main";
        description = "The node's chain. It sets the JSON-RPC port on loopback.";
      };
      url = mkOption {
        type = types.nullOr types.str;
        default = null;
        example = "http://127.0.0.1:8332";
        description = "URL of the node's JSON-RPC on loopback, if the port is not the chain's default. Only without {option}`socketPath`.";
      };
      user = mkOption {
        type = types.nullOr types.str;
        default = null;
        description = "User in the node's `-rpcauth`. Requires {option}`rpc.passwordFile`.";
      };
      passwordFile = mkOption {
        type = types.nullOr types.str;
        default = null;
        description = "File with that user's password in its first line. systemd passes it to the service as a credential.";
      };
      cookieFile = mkOption {
        type = types.nullOr types.str;
        default = null;
        example = "/var/lib/bitcoind-mainnet/.cookie";
        description = "The node's cookie file, instead of a user. systemd passes the cookie that exists when the service starts as a credential. Requires {option}`socketPath`, with which the service ends with the node.";
      };
    };
    metricsAddr = mkOption {
      type = types.str;
      default = "127.0.0.1:9332";
      description = "Address of the metrics endpoint: HOST:PORT.";
    };
    openFile = mkOption {
      type = types.bool;
      default = hasIpc && ipc.user == null;
      defaultText = lib.literalMD "true with a {option}`socketPath` and without a {option}`user`";
      description = ''
        Whether systemd connects to the node's socket. The exporter then runs as a user of its own (DynamicUser) without access to
        the node's files. It exits with the node, and the next scrape starts it again ({option}`socketActivation`).
      '';
    };
    socketActivation = mkOption {
      type = types.bool;
      default = ipc.openFile;
      defaultText = lib.literalExpression "config.services.bitcoind-ipc-exporter.openFile";
      description = "Whether systemd listens on {option}`metricsAddr`: the first scrape starts the exporter, and a restart drops no connection.";
    };
    user = mkOption {
      type = types.nullOr types.str;
      default = if owner == null then null else owner.user;
      defaultText = lib.literalMD "the user of the node in `services.bitcoind` that has the socket, else `null`";
      description = ''
        The service's user. The socket belongs to the node's user, and no other user can connect: set the node's user, or `null` for a
        user of its own with {option}`openFile`. Root is not needed.
      '';
    };
    group = mkOption {
      type = types.nullOr types.str;
      default = if owner == null then null else owner.group;
      defaultText = lib.literalMD "the group of that node, else `null`";
      description = "The service's group.";
    };
  };

  options.services.bitcoind-usdt-exporter = common "the Prometheus exporter of a Bitcoin node's tracepoints" // {
    bitcoind = mkOption {
      type = types.str;
      example = lib.literalExpression "lib.getExe' pkgs.bitcoin-node \"bitcoin-node\"";
      description = "Path of the node's binary, which has the tracepoints.";
    };
    unit = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "bitcoind-mainnet.service";
      description = "The node's systemd unit. Required if several nodes run {option}`bitcoind`, unless {option}`dataDir` is set.";
    };
    dataDir = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "/var/lib/bitcoind";
      description = ''
        The node's data directory, which selects the node as {option}`unit` does. The service's user usually cannot read it: the path must
        then be in `-datadir=` on the node's command line.
      '';
    };
    nodeName = mkOption {
      type = types.str;
      default = config.networking.hostName;
      defaultText = lib.literalExpression "config.networking.hostName";
      description = "Value of the label `node` of each metric.";
    };
    metricsAddr = mkOption {
      type = types.str;
      default = "127.0.0.1:9435";
      description = "Address of the metrics endpoint: HOST:PORT.";
    };
    healthPort = mkOption {
      type = types.port;
      default = 9436;
      description = "Port of `/health` and `/ready`, on the host of {option}`metricsAddr`.";
    };
    tracepoints = mkOption {
      type = types.listOf (types.enum [ "fibre" "validation" "net" "mempool" "utxocache" "logging" ]);
      default = [ ];
      description = "Groups of tracepoints to trace. An empty list means all groups of the binary.";
    };
    blockLogKeep = mkOption {
      type = types.ints.unsigned;
      default = 100000;
      description = ''
        Number of blocks in the block log, `/var/lib/bitcoind-usdt-exporter/blocks.sqlite`, one row per block. 0 disables it.
        `bitcoind-usdt-exporter blocks`, run as root, shows them.
      '';
    };
  };

  config = lib.mkMerge [
    (lib.mkIf ipc.enable {
      assertions = [
        {
          assertion = hasIpc || ipc.rpc.enable;
          message = "services.bitcoind-ipc-exporter: set socketPath or rpc.enable";
        }
        {
          assertion = ipc.rpc.enable -> (ipc.rpc.user != null && ipc.rpc.passwordFile != null) != (ipc.rpc.cookieFile != null);
          message = "services.bitcoind-ipc-exporter: set rpc.user and rpc.passwordFile, or rpc.cookieFile";
        }
        {
          assertion = ipc.rpc.url == null || !hasIpc;
          message = "services.bitcoind-ipc-exporter: rpc.url is only for a node without socketPath";
        }
        {
          assertion = ipc.rpc.cookieFile == null || hasIpc;
          message = "services.bitcoind-ipc-exporter: rpc.cookieFile needs socketPath, because the cookie changes when the node restarts; use rpc.user";
        }
        {
          assertion = !hasIpc || ipc.openFile || ipc.user != null;
          message = "services.bitcoind-ipc-exporter: without openFile, set user to the user of the node's socket";
        }
      ];

      systemd.sockets.bitcoind-ipc-exporter = lib.mkIf ipc.socketActivation {
        description = "Metrics endpoint of bitcoind-ipc-exporter";
        wantedBy = [ "sockets.target" ];
        socketConfig = {
          ListenStream = ipc.metricsAddr;
          FileDescriptorName = "http";
        };
      };

      systemd.services.bitcoind-ipc-exporter = {
        description = "Prometheus exporter of a Bitcoin node over IPC";
        inherit (ipc) after;
        # A scrape must not start a node that was stopped.
        bindsTo = lib.optionals (!ipc.socketActivation) ipc.bindsTo;
        partOf = lib.optionals ipc.socketActivation ipc.bindsTo;
        wantedBy = lib.optionals (!ipc.socketActivation) (
          if ipc.bindsTo == [ ] then [ "multi-user.target" ] else ipc.bindsTo
        );
        startLimitIntervalSec = 60;
        startLimitBurst = 20;
        serviceConfig =
          hardening
          // credentials ipc
          // environment ipc
          // {
            ExecStart = command ipc "bitcoind-ipc-exporter" (
              [ "--metrics-addr" ipc.metricsAddr ]
              ++ lib.optional ipc.debug "--debug"
              ++ lib.optionals ipc.rpc.enable [ "--chain" ipc.rpc.chain ]
              ++ lib.optionals (!hasIpc) [ "--rpc" "on" ]
              ++ lib.optionals (ipc.rpc.url != null) [ "--rpc-url" ipc.rpc.url ]
              ++ lib.optionals (ipc.rpc.enable && ipc.rpc.user != null) [ "--rpc-user" ipc.rpc.user ]
              ++ lib.optional (hasIpc && !ipc.openFile) ipc.socketPath
            );
            # systemd must not kill the guard, which exits after it has disconnected from the node.
            KillMode = "process";
            OOMPolicy = "continue";
            ManagedOOMPreference = "omit";
            OOMScoreAdjust = -900;
            CapabilityBoundingSet = "";
            ProtectKernelTunables = true;
            # ProtectProc= is not set, because the exporter reads in /proc whether Bitcoin Core 30 has loaded its chain.
            ProcSubset = "pid";
            SystemCallFilter = [ "@system-service" "~@privileged @resources" "sched_setattr setpriority" "seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self" ];
            RestrictAddressFamilies = [
              "AF_UNIX"
            ]
            ++ lib.optionals (!ipc.socketActivation || ipc.rpc.enable) [ "AF_INET" "AF_INET6" ];
          }
          // lib.optionalAttrs ipc.socketActivation (
            {
              PrivateNetwork = !ipc.rpc.enable;
              IPAddressDeny = "any";
            }
            // lib.optionalAttrs ipc.rpc.enable { IPAddressAllow = "localhost"; }
          )
          // lib.optionalAttrs ipc.openFile { OpenFile = "${ipc.socketPath}:ipc:graceful"; }
          // (
            if ipc.user == null then
              {
                DynamicUser = true;
                PrivateUsers = true;
              }
            else
              { User = ipc.user; } // lib.optionalAttrs (ipc.group != null) { Group = ipc.group; }
          );
      };
    })

    (lib.mkIf usdt.enable {
      # The command `bitcoind-usdt-exporter blocks` prints the block log.
      environment.systemPackages = lib.mkIf (usdt.blockLogKeep > 0) [ usdt.package ];

      systemd.services.bitcoind-usdt-exporter = {
        description = "Prometheus exporter of a Bitcoin node's tracepoints";
        inherit (usdt) after bindsTo;
        wantedBy = [ "multi-user.target" ];
        aliases = [ "fibre-exporter.service" ];
        startLimitIntervalSec = 60;
        startLimitBurst = 20;
        serviceConfig = hardening // credentials usdt // environment usdt // {
          ExecStart = command usdt "bitcoind-usdt-exporter" (
            [
              "--bitcoind"
              usdt.bitcoind
              "--node-name"
              usdt.nodeName
              "--metrics-addr"
              usdt.metricsAddr
              "--health-port"
              (toString usdt.healthPort)
            ]
            ++ lib.optionals (usdt.unit != null) [ "--unit" usdt.unit ]
            ++ lib.optionals (usdt.dataDir != null) [ "--datadir" usdt.dataDir ]
            ++ lib.optionals (usdt.tracepoints != [ ]) [
              "--tracepoints"
              (lib.concatStringsSep "," usdt.tracepoints)
            ]
            ++ lib.optionals (usdt.blockLogKeep > 0) [
              "--block-log"
              "/var/lib/bitcoind-usdt-exporter/blocks.sqlite"
              "--block-log-keep"
              (toString usdt.blockLogKeep)
            ]
            ++ lib.optional usdt.debug "--debug"
          );
          StateDirectory = "bitcoind-usdt-exporter";
          UMask = "0077";
          # Discards the standard output of the exporter, which is a list of the attached tracepoints. The log also has
          # this list.
          StandardOutput = "null";
          StandardError = "journal";
          DynamicUser = true;
          AmbientCapabilities = [ "CAP_BPF" "CAP_PERFMON" ];
          CapabilityBoundingSet = [ "CAP_BPF" "CAP_PERFMON" ];
          LimitMEMLOCK = "infinity";
          SystemCallFilter = [ "@system-service bpf perf_event_open" "~@resources" "setpriority" "seccomp" ];
          RestrictAddressFamilies = [ "AF_UNIX" "AF_INET" "AF_INET6" ];
        };
      };
    })
  ];
}
