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

  # Of the node that this machine runs at the socket's path, if nixpkgs' module runs one.
  nodes = lib.attrValues (config.services.bitcoind or { });
  hasIpc = ipc.socketPath != null;
  owners = lib.filter (node: node.enable && hasIpc && lib.hasPrefix "${node.dataDir}/" ipc.socketPath) nodes;
  owner = if owners == [ ] then null else lib.head owners;

  units = names: mkOption {
    type = types.listOf types.str;
    default = [ ];
    description = "Units for `${names}=` of the service.";
  };

  common = name: {
    enable = lib.mkEnableOption name;
    package = mkOption {
      type = types.package;
      default = pkgs.bitcoind-exporter;
      defaultText = lib.literalExpression "pkgs.bitcoind-exporter, of the flake's overlay";
      description = "The package with the exporters.";
    };
    debug = mkOption {
      type = types.bool;
      default = false;
      description = "Log a line for each event and each poll.";
    };
    webConfigFile = mkOption {
      type = types.nullOr types.str;
      default = null;
      description = "TLS and basic authentication, in the format of Prometheus' exporter-toolkit. The service gets it as a credential; certificates it names need absolute paths that the service can read.";
    };
    extraFlags = mkOption {
      type = types.listOf types.str;
      default = [ ];
      description = "Further command-line arguments.";
    };
    after = units "After";
    bindsTo = units "BindsTo";
  };

  # As in contrib/systemd.
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

  # What the service gets as a credential: { its name = { file; flag; }; }. systemd expands %d, the folder of credentials.
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
    utils.escapeSystemdExecArgs ([ (lib.getExe' exporter.package binary) ] ++ flags ++ exporter.extraFlags)
    + lib.concatStrings (lib.mapAttrsToList (name: secret: " ${secret.flag} %d/${name}") (secrets exporter));
  credentials = exporter: {
    LoadCredential = lib.mapAttrsToList (name: secret: "${name}:${secret.file}") (secrets exporter);
  }
  # Without a node there is no cookie, and the exporter has to be there to say so.
  // lib.optionalAttrs (secrets exporter ? rpc-cookie) { SetCredential = "rpc-cookie:none"; };
in
{
  options.services.bitcoind-ipc-exporter = common "the Prometheus exporter of a Bitcoin node over IPC" // {
    socketPath = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "/var/lib/bitcoind-mainnet/node.sock";
      description = "The node's IPC socket; `null` for a node without IPC, with {option}`rpc`.";
    };
    rpc = {
      enable = lib.mkEnableOption "JSON-RPC over HTTP on this machine, for what the node does not tell over IPC";
      chain = mkOption {
        type = types.enum [ "main" "test" "testnet4" "signet" "regtest" ];
        default = "main";
        description = "The node's chain, and with it the port on loopback.";
      };
      url = mkOption {
        type = types.nullOr types.str;
        default = null;
        example = "http://127.0.0.1:8332";
        description = "Where the node's JSON-RPC listens on loopback, if that is not the chain's port. Only without {option}`socketPath`.";
      };
      user = mkOption {
        type = types.nullOr types.str;
        default = null;
        description = "A user of the node's `-rpcauth`, with {option}`rpc.passwordFile`.";
      };
      passwordFile = mkOption {
        type = types.nullOr types.str;
        default = null;
        description = "The file whose first line is that user's password. The service gets it as a credential.";
      };
      cookieFile = mkOption {
        type = types.nullOr types.str;
        default = null;
        example = "/var/lib/bitcoind-mainnet/.cookie";
        description = "Instead, the node's cookie. The service gets the one that is there when it starts, as a credential; so only with {option}`socketPath`, where it ends with the node.";
      };
    };
    metricsAddr = mkOption {
      type = types.str;
      default = "127.0.0.1:9332";
      description = "Where to serve metrics: HOST:PORT.";
    };
    openFile = mkOption {
      type = types.bool;
      default = hasIpc && ipc.user == null;
      defaultText = lib.literalMD "whether there is a {option}`socketPath` and no {option}`user`";
      description = ''
        Let systemd connect to the node's socket, so that the exporter runs as a user of its own (DynamicUser) without
        access to the node's files. It then ends with the node and is started again by the next scrape
        ({option}`socketActivation`).
      '';
    };
    socketActivation = mkOption {
      type = types.bool;
      default = ipc.openFile;
      defaultText = lib.literalExpression "config.services.bitcoind-ipc-exporter.openFile";
      description = "Let systemd listen at {option}`metricsAddr`: the first scrape starts the exporter, a restart drops no connection.";
    };
    user = mkOption {
      type = types.nullOr types.str;
      default = if owner == null then null else owner.user;
      defaultText = lib.literalMD "the user of the node in `services.bitcoind` that has the socket, else `null`";
      description = ''
        The service's user. The socket belongs to the node's user and nobody else may connect, so this is the node's user,
        or `null` for a user of its own with {option}`openFile`. It need not be root.
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
      description = "The binary with the tracepoints.";
    };
    unit = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "bitcoind-mainnet.service";
      description = "The node's systemd unit. Needed if several nodes of {option}`bitcoind` run.";
    };
    dataDir = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "/var/lib/bitcoind";
      description = ''
        The node's data directory, which names the node like {option}`unit`. The service's user cannot look into it as a rule: it has to be
        `-datadir=` on the node's command line.
      '';
    };
    nodeName = mkOption {
      type = types.str;
      default = config.networking.hostName;
      defaultText = lib.literalExpression "config.networking.hostName";
      description = "The label `node` of each metric.";
    };
    metricsAddr = mkOption {
      type = types.str;
      default = "127.0.0.1:9435";
      description = "Where to serve metrics: HOST:PORT.";
    };
    healthPort = mkOption {
      type = types.port;
      default = 9436;
      description = "Port of `/health` and `/ready`, on the host of {option}`metricsAddr`.";
    };
    tracepoints = mkOption {
      type = types.listOf (types.enum [ "fibre" "validation" "net" "mempool" "utxocache" "logging" ]);
      default = [ ];
      description = "Groups of tracepoints to trace; none means all that the binary has.";
    };
    blockLogKeep = mkOption {
      type = types.ints.unsigned;
      default = 100000;
      description = ''
        How many blocks are kept in `/var/lib/bitcoind-usdt-exporter/blocks.sqlite`, a row each, which
        `bitcoind-usdt-exporter blocks` shows, as root; 0 for no such file.
      '';
    };
  };

  config = lib.mkMerge [
    (lib.mkIf ipc.enable {
      assertions = [
        {
          assertion = hasIpc || ipc.rpc.enable;
          message = "services.bitcoind-ipc-exporter: socketPath or rpc.enable has to say how the node is asked";
        }
        {
          assertion = ipc.rpc.enable -> (ipc.rpc.user != null && ipc.rpc.passwordFile != null) != (ipc.rpc.cookieFile != null);
          message = "services.bitcoind-ipc-exporter: rpc needs user and passwordFile, or cookieFile";
        }
        {
          assertion = ipc.rpc.url == null || !hasIpc;
          message = "services.bitcoind-ipc-exporter: rpc.url is for a node without socketPath";
        }
        {
          assertion = ipc.rpc.cookieFile == null || hasIpc;
          message = "services.bitcoind-ipc-exporter: without socketPath the cookie would be that of the node's first run; use rpc.user";
        }
        {
          assertion = !hasIpc || ipc.openFile || ipc.user != null;
          message = "services.bitcoind-ipc-exporter: without openFile the exporter needs the user of the node's socket";
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
            # Never the guard: it ends by itself after it has taken leave of the node.
            KillMode = "process";
            OOMPolicy = "continue";
            ManagedOOMPreference = "omit";
            OOMScoreAdjust = -900;
            CapabilityBoundingSet = "";
            ProtectKernelTunables = true;
            # Other users' processes stay visible: that Bitcoin Core 30 has loaded its chain shows only there.
            ProcSubset = "pid";
            SystemCallFilter = [ "@system-service" "~@privileged @resources" "sched_setattr setpriority" ];
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
      # For `bitcoind-usdt-exporter blocks`.
      environment.systemPackages = lib.mkIf (usdt.blockLogKeep > 0) [ usdt.package ];

      systemd.services.bitcoind-usdt-exporter = {
        description = "Prometheus exporter of a Bitcoin node's tracepoints";
        inherit (usdt) after bindsTo;
        wantedBy = [ "multi-user.target" ];
        aliases = [ "fibre-exporter.service" ];
        startLimitIntervalSec = 60;
        startLimitBurst = 20;
        serviceConfig = hardening // credentials usdt // {
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
          # What it attached is in the log, too.
          StandardOutput = "null";
          StandardError = "journal";
          DynamicUser = true;
          AmbientCapabilities = [ "CAP_BPF" "CAP_PERFMON" ];
          CapabilityBoundingSet = [ "CAP_BPF" "CAP_PERFMON" ];
          LimitMEMLOCK = "infinity";
          SystemCallFilter = [ "@system-service bpf perf_event_open" "~@resources" "setpriority" ];
          RestrictAddressFamilies = [ "AF_UNIX" "AF_INET" "AF_INET6" ];
        };
      };
    })
  ];
}
