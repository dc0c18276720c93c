# Tests a release's tarball, which is extracted to /. The scenario also runs on Debian 12, whose systemd has no OpenFile=.
SCRAPE = "curl -sf --max-time 20 http://127.0.0.1:9332/metrics"

machine.with_tarball()
start_all()
machine.succeed("systemctl start bitcoind.service")
machine.wait_until_succeeds("test -S /run/bitcoind/node.sock")

with subtest("unpacked, its units are there, and nothing else has changed"):
    modes = machine.succeed("stat -c '%n %a %u' / /usr /usr/bin /usr/lib /usr/share")
    machine.succeed("tar -C / --no-overwrite-dir --strip-components=1 -xzf /root/bitcoind-exporter.tar.gz")
    assert modes == machine.succeed("stat -c '%n %a %u' / /usr /usr/bin /usr/lib /usr/share")
    machine.succeed("systemctl daemon-reload",
                    "systemctl enable --now bitcoind-ipc-exporter.socket bitcoind-usdt-exporter.service",
                    "test -s /usr/share/man/man1/bitcoind-ipc-exporter.1.gz")

with subtest("a scrape starts it; with an old systemd it connects when the drop-in is there"):
    version = int(machine.succeed("systemctl --version").split()[1])
    if version < 253:
        machine.wait_until_succeeds(f"{SCRAPE} | grep -x 'bitcoin_up 0'")
        machine.succeed(
            "mkdir /etc/systemd/system/bitcoind-ipc-exporter.service.d",
            "cp /usr/share/doc/bitcoind-exporter/examples/bitcoind-ipc-exporter.service.d/socket-path.conf.example "
            "/etc/systemd/system/bitcoind-ipc-exporter.service.d/socket-path.conf",
            "systemctl daemon-reload && systemctl restart bitcoind-ipc-exporter")
    machine.wait_until_succeeds(f"{SCRAPE} | grep -x 'bitcoin_up 1'")
    machine.wait_until_succeeds("curl -sf http://127.0.0.1:9435/metrics | grep fibre_exporter_probes_attached")

with subtest("stopped, the node lives"):
    machine.succeed("systemctl disable --now bitcoind-ipc-exporter.socket bitcoind-ipc-exporter bitcoind-usdt-exporter")
    machine.wait_until_fails("grep -qszE 'bitcoind-(ipc|usdt)[-]exporter' /proc/[0-9]*/cmdline")
    machine.succeed("systemctl is-active bitcoind.service", "bitcoin-cli generatetodescriptor 1 'raw(51)'")
