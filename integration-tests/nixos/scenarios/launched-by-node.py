# Tests that the node starts the exporter in the node's service (-startupnotify), and that the exporter exits with the
# node.

SCRAPE = "curl -sf --max-time 20 http://127.0.0.1:9400/metrics"
LAUNCH = "bitcoind-ipc-exporter --exit-with-node --metrics-addr 127.0.0.1:9400 /run/bitcoind/node.sock"
# The brackets in the pattern prevent a match with this grep process itself.
RUNS = "grep -qsz -e '[-]-exit-with-node' /proc/[0-9]*/cmdline"

start_all()
# The first start of the node creates the directory for the configuration file.
machine.succeed("systemctl start bitcoind.service")
machine.wait_until_succeeds("test -S /run/bitcoind/node.sock")
machine.succeed("systemctl stop bitcoind.service", f"echo startupnotify=exec $(command -v bitcoind-ipc-exporter) {LAUNCH.partition(' ')[2]} "
                "> /var/lib/bitcoind/bitcoin.conf")

with subtest("the node starts it"):
    machine.succeed("systemctl start bitcoind.service")
    machine.wait_until_succeeds(f"{SCRAPE} | grep -x 'bitcoin_up 1'")
    machine.succeed(RUNS)
    machine.succeed("bitcoin-cli generatetodescriptor 2 'raw(51)'")
    machine.wait_until_succeeds(f"{SCRAPE} | grep -x 'bitcoin_chain_height 2'")

with subtest("it ends with the node, in order"):
    machine.succeed("bitcoin-cli stop")
    machine.wait_until_fails(RUNS)
    machine.wait_until_succeeds("systemctl show -P ActiveState bitcoind.service | grep -x inactive")
    machine.succeed("systemctl show -P Result bitcoind.service | grep -x success")

with subtest("so it does when the service is stopped, which ends all of its processes at once"):
    machine.succeed("systemctl start bitcoind.service")
    machine.wait_until_succeeds(f"{SCRAPE} | grep -x 'bitcoin_up 1'")
    machine.succeed("systemctl stop bitcoind.service", "systemctl show -P Result bitcoind.service | grep -x success")
    machine.fail(RUNS)
