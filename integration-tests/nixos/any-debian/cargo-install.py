# Tests the exporters that `cargo install --path . --root /usr/local` installs: first without other files of this
# repository, and then with the systemd units of this repository.
machine.with_cargo_install()
start_all()
machine.succeed("systemctl start bitcoind.service")
machine.wait_until_succeeds("test -S /run/bitcoind/node.sock")
AS_THE_NODE = "setpriv --reuid=bitcoin --regid=bitcoin --clear-groups"

with subtest("as the node's user, with the socket's path"):
    said = machine.succeed(f"{AS_THE_NODE} /usr/local/bin/bitcoind-ipc-exporter --check /run/bitcoind/node.sock")
    assert "bitcoin_chain_height" in said, said
    machine.succeed("systemd-run --unit=by-hand --uid=bitcoin -p KillMode=process "
                    "/usr/local/bin/bitcoind-ipc-exporter /run/bitcoind/node.sock")
    machine.wait_until_succeeds("curl -sf http://127.0.0.1:9332/metrics | grep -x 'bitcoin_up 1'")
    machine.succeed("systemctl stop by-hand")
    machine.wait_until_fails("grep -qszE 'bitcoind-ipc[-]exporter' /proc/[0-9]*/cmdline")

with subtest("as root, the node's tracepoints"):
    machine.succeed("systemd-run --unit=by-hand-too /usr/local/bin/bitcoind-usdt-exporter --bitcoind /usr/bin/bitcoin-node")
    machine.wait_until_succeeds("curl -sf http://127.0.0.1:9435/metrics | grep fibre_exporter_probes_attached")
    machine.succeed("systemctl stop by-hand-too")

with subtest("the units of the clone"):
    units = "/root/clone/contrib/systemd"
    machine.succeed("cp /usr/local/bin/bitcoind-*-exporter /usr/bin/",
                    f"cp {units}/*.service {units}/*.socket /etc/systemd/system/")
    if int(machine.succeed("systemctl --version").split()[1]) < 253:
        machine.succeed("mkdir /etc/systemd/system/bitcoind-ipc-exporter.service.d",
                        f"cp {units}/bitcoind-ipc-exporter.service.d/socket-path.conf.example "
                        "/etc/systemd/system/bitcoind-ipc-exporter.service.d/socket-path.conf")
    machine.succeed("systemctl daemon-reload",
                    "systemctl enable --now bitcoind-ipc-exporter.socket bitcoind-usdt-exporter.service")
    machine.wait_until_succeeds("curl -sf http://127.0.0.1:9332/metrics | grep -x 'bitcoin_up 1'")
    machine.wait_until_succeeds("curl -sf http://127.0.0.1:9435/metrics | grep fibre_exporter_probes_attached")
    machine.succeed("systemctl is-active bitcoind.service", "bitcoin-cli generatetodescriptor 1 'raw(51)'")
