# Tests two nodes, each with an instance of the exporter's template unit. One of the exporters has the drop-in for versions of
# systemd that do not support OpenFile=.


def scrape(port):
    return f"curl -sf --max-time 20 http://127.0.0.1:{port}/metrics"


start_all()
with subtest("each node has its exporter: one by hand, the other by `setup`"):
    for instance, port, blocks in [("one", 9401, 4), ("two", 9333, 7)]:
        rpc = port + 9000
        machine.succeed(f"echo PORT={rpc} > /etc/default/bitcoind-{instance}", f"systemctl start bitcoind@{instance}.service")
        machine.wait_until_succeeds(f"test -S /run/bitcoind-{instance}/node.sock")
        machine.succeed(
            f"DATADIR=/var/lib/bitcoind-{instance} RPCPORT={rpc} bitcoin-cli generatetodescriptor {blocks} 'raw(51)'",
        )
        unit = f"bitcoind-ipc-exporter@{instance}.service"
        if instance == "one":
            machine.succeed(
                f"echo BITCOIND_IPC_EXPORTER_METRICS_ADDR=127.0.0.1:{port} > /etc/default/bitcoind-ipc-exporter-{instance}",
                f"systemctl enable --now {unit}",
            )
        else:
            output = machine.fail("bitcoind-ipc-exporter setup --write")
            assert "several nodes are running; select one with --node PID" in output, output
            output = machine.succeed(f"bitcoind-ipc-exporter setup --write --node bitcoind@{instance}")
            command = f"systemctl enable {unit} && systemctl restart {unit}"
            assert command in output, output
            machine.succeed(f"systemctl daemon-reload; {command}")
        machine.wait_until_succeeds(f"{scrape(port)} | grep -x 'bitcoin_chain_height {blocks}'")

with subtest("they are hardened"):
    exposure = machine.succeed("systemd-analyze security --no-pager bitcoind-ipc-exporter@one.service | tail -n 1")
    assert float(exposure.split(": ")[1].split()[0]) <= 1.5, exposure

with subtest("one node ends: its exporter waits for it, and the other exporter is not affected"):
    machine.succeed("systemctl stop bitcoind@one.service")
    machine.wait_until_succeeds(f"{scrape(9401)} | grep -x 'bitcoin_up 0'")
    machine.succeed(f"{scrape(9333)} | grep -x 'bitcoin_up 1'", "systemctl start bitcoind@one.service")
    machine.wait_until_succeeds(f"{scrape(9401)} | grep -x 'bitcoin_chain_height 4'")

with subtest("the drop-in for an older systemd uses the path and the node's user, and waits for the node"):
    units = "/usr/lib/systemd/system"
    machine.succeed(
        "mkdir -p /etc/systemd/system/bitcoind-ipc-exporter.service.d",
        f"cp {units}/bitcoind-ipc-exporter.service.d/socket-path.conf.example "
        "/etc/systemd/system/bitcoind-ipc-exporter.service.d/socket-path.conf",
        "systemctl daemon-reload",
        "systemctl start bitcoind.service bitcoind-ipc-exporter.socket",
    )
    machine.wait_until_succeeds(f"{scrape(9332)} | grep -x 'bitcoin_up 1'")
    pid = machine.succeed("systemctl show -P MainPID bitcoind-ipc-exporter").strip()
    assert machine.succeed(f"stat -c %U /proc/{pid}").strip() == "bitcoin"
