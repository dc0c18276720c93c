# Tests the Debian package on Debian 12, whose systemd does not support the directive OpenFile= of
# bitcoind-ipc-exporter.service.

machine.with_package()
start_all()
machine.succeed("systemctl start bitcoind.service")
machine.wait_until_succeeds("test -S /run/bitcoind/node.sock")

with subtest("it installs, a scrape starts it, and it logs what is missing"):
    machine.succeed("DEBIAN_FRONTEND=noninteractive dpkg -i /root/bitcoind-exporter.deb")
    machine.wait_until_succeeds("curl -sf http://127.0.0.1:9332/metrics | grep -x 'bitcoin_up 0'")
    machine.wait_until_succeeds("journalctl -u bitcoind-ipc-exporter | grep 'older than 253 and needs socket-path.conf'")

with subtest("with the drop-in for old systemd it connects"):
    machine.succeed(
        "mkdir /etc/systemd/system/bitcoind-ipc-exporter.service.d",
        "cp /usr/share/doc/bitcoind-exporter/examples/bitcoind-ipc-exporter.service.d/socket-path.conf.example "
        "/etc/systemd/system/bitcoind-ipc-exporter.service.d/socket-path.conf",
        "systemctl daemon-reload && systemctl restart bitcoind-ipc-exporter")
    machine.wait_until_succeeds("curl -sf http://127.0.0.1:9332/metrics | grep -x 'bitcoin_up 1'")
    machine.succeed("bitcoin-cli generatetodescriptor 3 'raw(51)'")
    machine.wait_until_succeeds("curl -sf http://127.0.0.1:9332/metrics | grep -x 'bitcoin_blocks_connected_total 3'")

with subtest("the other exporter needs nothing more"):
    machine.succeed("systemctl enable --now bitcoind-usdt-exporter.service")
    machine.wait_until_succeeds("curl -sf http://127.0.0.1:9435/metrics | grep fibre_exporter_probes_attached")

with subtest("it is removed, and the node lives"):
    machine.succeed("DEBIAN_FRONTEND=noninteractive dpkg -P bitcoind-exporter")
    machine.wait_until_fails("grep -qszE 'bitcoind-(ipc|usdt)[-]exporter' /proc/[0-9]*/cmdline")
    machine.succeed("systemctl is-active bitcoind.service", "bitcoin-cli generatetodescriptor 1 'raw(51)'")
