{
  description = "Prometheus exporters for a running Bitcoin node: over IPC, and from its tracepoints";

  inputs = {
    # The version of rustc in this nixpkgs must be at least the rust-version in Cargo.toml.
    nixpkgs.url = "github:NixOS/nixpkgs/nixos-26.05";
    # A node with the Chain, Node and Tracing interfaces, for the tests; the exporters do not need it.
    # To build another branch: nix build .#bitcoin-node --override-input bitcoin-node-src github:OWNER/bitcoin/BRANCH
    bitcoin-node-src = {
      url = "github:willcl-ark/bitcoin/pr/trace";
      flake = false;
    };
  };

  outputs =
    {
      self,
      nixpkgs,
      bitcoin-node-src,
    }:
    let
      systems = [
        "x86_64-linux"
        "aarch64-linux"
      ];
      forAll = f: nixpkgs.lib.genAttrs systems (system: f nixpkgs.legacyPackages.${system});

      exporters =
        pkgs:
        pkgs.rustPlatform.buildRustPackage {
          pname = "bitcoind-exporter";
          version = (nixpkgs.lib.importTOML ./Cargo.toml).package.version;
          src = self;
          cargoLock.lockFile = ./Cargo.lock;
          nativeBuildInputs = with pkgs; [
            capnproto
            llvmPackages.clang-unwrapped
            pkg-config
          ];
          buildInputs = with pkgs; [
            elfutils
            zlib
          ];
          # clang-unwrapped does not know the paths of the kernel headers. (The wrapper of nixpkgs knows the paths, but
          # adds hardening flags that are invalid for the BPF target.)
          env.NIX_CFLAGS_COMPILE = "-I${pkgs.linuxHeaders}/include";
          env.C_INCLUDE_PATH = "${pkgs.linuxHeaders}/include";
          env.BUILD_REVISION = self.shortRev or "unknown";
          # The other tests need a node, kernel features or containers, which the sandbox of the build does not have.
          cargoTestFlags = [ "--lib" ];
          postInstall = ''
            mkdir -p $out/share/man/man1
            for exporter in ipc usdt; do
              $out/bin/bitcoind-$exporter-exporter --generate man > $out/share/man/man1/bitcoind-$exporter-exporter.1
            done
          '';
          meta = {
            description = "Prometheus exporters for a running Bitcoin node";
            license = nixpkgs.lib.licenses.mit;
            mainProgram = "bitcoind-ipc-exporter";
            platforms = systems;
          };
        };

      bitcoin-node =
        pkgs:
        pkgs.stdenv.mkDerivation {
          pname = "bitcoin-node";
          version = "30.99";
          src = bitcoin-node-src;
          nativeBuildInputs = with pkgs; [
            capnproto
            cmake
            pkg-config
            python3
          ];
          buildInputs = with pkgs; [
            boost
            capnproto
            libevent
            libsystemtap
            sqlite
          ];
          cmakeFlags = [
            "-DENABLE_IPC=ON"
            "-DWITH_USDT=ON"
            "-DBUILD_TESTS=OFF"
            "-DBUILD_BENCH=OFF"
            "-DBUILD_GUI=OFF"
          ];
          # The build installs bitcoin-node to libexec, for the wrapper `bitcoin`.
          postInstall = ''
            ln -s ../libexec/bitcoin-node $out/bin/bitcoin-node
          '';
        };

      # A VM test of a node and both exporters, with a scenario that also runs on Debian. The overlay is applied here,
      # because a machine of the test driver cannot set nixpkgs.overlays.
      scenario =
        pkgs: name:
        (pkgs.extend self.overlays.default).testers.runNixOSTest {
          inherit name;
          nodes.machine = {
            imports = [
              self.nixosModules.default
              ./integration-tests/nixos/machine.nix
            ];
          };
          testScript = builtins.readFile (./integration-tests/nixos/scenarios + "/${name}.py");
          skipTypeCheck = true;
        };
    in
    {
      packages = forAll (pkgs: {
        default = exporters pkgs;
        bitcoin-node = bitcoin-node pkgs;
      });

      overlays.default = final: _: {
        bitcoind-exporter = exporters final;
        bitcoin-node = bitcoin-node final;
      };

      nixosModules.default = import ./module.nix;

      devShells = forAll (pkgs: {
        default = pkgs.mkShell {
          inputsFrom = [ (exporters pkgs) ];
          # The attribute inputsFrom does not copy environment variables from the packages.
          env.C_INCLUDE_PATH = "${pkgs.linuxHeaders}/include";
          packages = with pkgs; [
            cargo
            clippy
            rustfmt
            prometheus
          ];
        };
      });

      checks = forAll (
        pkgs:
        nixpkgs.lib.genAttrs [
          "ipc-regtest"
          "launched-by-node"
          "monitoring-stack"
          "pid-1"
          "socket-activation"
          "tls"
          "usdt-regtest"
        ] (scenario pkgs)
      );

      formatter = forAll (pkgs: pkgs.nixfmt);
    };
}
