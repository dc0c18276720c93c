# Tests the Debian package: it is installed, used, upgraded, removed and purged.

SCRAPE = "curl -sf --max-time 20 http://127.0.0.1:9332/metrics"
INSTALL = "DEBIAN_FRONTEND=noninteractive dpkg -i /root/bitcoind-exporter.deb"

machine.with_package()
start_all()
machine.succeed("systemctl start bitcoind.service")
machine.wait_until_succeeds("test -S /run/bitcoind/node.sock")

with subtest("it installs where systemd does not run, as in an image that is being made"):
    machine.succeed(f"unshare --mount sh -ec 'mount -t tmpfs tmpfs /run/systemd; {INSTALL}'",
                    "systemctl is-enabled bitcoind-ipc-exporter.socket", "dpkg -P bitcoind-exporter")

with subtest("it installs, and listens"):
    machine.fail("curl -s http://127.0.0.1:9332/livez")
    machine.succeed(INSTALL, "systemctl is-active bitcoind-ipc-exporter.socket")
    machine.fail("systemctl is-active bitcoind-ipc-exporter.service", "systemctl is-enabled bitcoind-usdt-exporter.service")
    files = machine.succeed("dpkg -L bitcoind-exporter").split()
    for file in ["man/man1/bitcoind-ipc-exporter.1.gz", "bash-completion/completions/bitcoind-usdt-exporter"]:
        assert f"/usr/share/{file}" in files, files

with subtest("the first scrape starts it"):
    machine.wait_until_succeeds(f"{SCRAPE} | grep -x 'bitcoin_up 1'")

with subtest("the other exporter is started by hand"):
    machine.succeed("systemctl enable --now bitcoind-usdt-exporter.service")
    machine.wait_until_succeeds("curl -sf http://127.0.0.1:9435/metrics | grep fibre_exporter_probes_attached")

with subtest("an upgrade restarts both, and listens all the while"):
    pids = "systemctl show -P MainPID bitcoind-ipc-exporter bitcoind-usdt-exporter"
    before = machine.succeed(pids).split()
    machine.succeed("for i in $(seq 60); do curl -sf --max-time 20 -o /dev/null http://127.0.0.1:9332/livez || exit 1; "
                    f"sleep 0.05; done & scrapes=$!; {INSTALL} && wait $scrapes")
    after = machine.succeed(pids).split()
    assert not set(before) & set(after) and "0" not in after, (before, after)
    machine.wait_until_succeeds(f"{SCRAPE} | grep -x 'bitcoin_up 1'")
    machine.succeed("systemctl is-active bitcoind.service")

with subtest("what is removed runs no more, and the node lives"):
    machine.succeed("dpkg -r bitcoind-exporter")
    # Because of the brackets, the pattern does not match the command line of this grep process.
    machine.wait_until_fails("grep -qszE 'bitcoind-(ipc|usdt)[-]exporter' /proc/[0-9]*/cmdline")
    machine.fail("curl -s http://127.0.0.1:9332/livez")
    machine.succeed("systemctl is-active bitcoind.service", "bitcoin-cli generatetodescriptor 1 'raw(51)'")

with subtest("a purge leaves nothing"):
    machine.succeed("dpkg -P bitcoind-exporter")
    left = machine.succeed("find / -xdev -name '*bitcoind*exporter*' -not -path '/root/*' -not -path '/proc/*' "
                           "-not -path '/tmp/*' -not -path '/var/tmp/*'")
    assert not left, left
