# Tests the IPC exporter's unit with the drop-in that passes the node's cookie for JSON-RPC over HTTP: without a node, with
# a node, and after the node's restart. Users need this drop-in for Bitcoin Core 30 and 31. (The node of this test has
# JSON-RPC over IPC, and the exporter therefore does not use HTTP.)

SCRAPE = "curl -sf --max-time 20 http://127.0.0.1:9332/metrics"
UNIT = "bitcoind-ipc-exporter.service"
DROP_INS = f"/etc/systemd/system/{UNIT}.d"

start_all()
machine.succeed(
    f"mkdir -p {DROP_INS}",
    "sed -e 's/--chain main/--chain regtest/; s|bitcoind/.cookie|bitcoind/regtest/.cookie|' "
    "-e '/rpc-password/d' -e 's/^# \\(LoadCredential\\|SetCredential\\|ExecStart\\)/\\1/' "
    f"/usr/lib/systemd/system/{UNIT}.d/json-rpc.conf.example > {DROP_INS}/json-rpc.conf",
    "systemctl daemon-reload",
)
for start in range(2):
    with subtest("without a node, and so without a cookie, it says so"):
        machine.wait_until_succeeds(f"{SCRAPE} | grep -x 'bitcoin_up 0'")
        machine.wait_until_fails(f"systemctl is-active {UNIT}")
        machine.fail(f"systemctl is-failed {UNIT}")

    with subtest("it has the cookie of the node that runs, and the connection over IPC"):
        machine.succeed("systemctl start bitcoind.service")
        machine.wait_until_succeeds("test -S /run/bitcoind/node.sock && test -e /var/lib/bitcoind/regtest/.cookie")
        machine.wait_until_succeeds(f"{SCRAPE} | grep -x 'bitcoin_up 1'")
        machine.succeed(f"{SCRAPE} | grep -xF 'bitcoin_exporter_interface{{interface=\"mining\"}} 1'")
        machine.succeed(f"cmp /run/credentials/{UNIT}/rpc-cookie /var/lib/bitcoind/regtest/.cookie")
        machine.succeed("systemctl stop bitcoind.service")
