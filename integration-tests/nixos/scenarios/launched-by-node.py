# Tests an exporter that the node starts with -startupnotify, as a part of the node's systemd service. The exporter must exit
# when the node exits.

SCRAPE = "curl -sf --max-time 20 http://127.0.0.1:9400/metrics"
LAUNCH = "bitcoind-ipc-exporter --exit-with-node --metrics-addr 127.0.0.1:9400 /run/bitcoind/node.sock"
# Because of the brackets, the pattern does not match the command line of this grep process.
RUNS = "grep -qsz -e '[-]-exit-with-node' /proc/[0-9]*/cmdline"

start_all()
# The first start of the node creates the data directory, to which the configuration file is then written.
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
