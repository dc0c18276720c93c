# Tests that the metrics of the IPC exporter are equal to the node's RPC results, also after new blocks, after a reorg and
# after a restart of the node.
import json

SCRAPE = "curl -sf --max-time 20 http://127.0.0.1:9332/metrics"


def cli(command):
    return machine.succeed(f"bitcoin-cli {command}").strip()


def shows(sample):
    machine.wait_until_succeeds(f"{SCRAPE} | grep -xF '{sample}'")


start_all()
machine.succeed("systemctl start bitcoind.service", "systemctl start bitcoind-ipc-exporter.socket")
machine.wait_until_succeeds("test -S /run/bitcoind/node.sock")

with subtest("chain and mempool"):
    cli("generatetodescriptor 101 'raw(51)'")
    shows("bitcoin_up 1")
    shows("bitcoin_chain_height 101")
    info = json.loads(cli("getmempoolinfo"))
    shows(f"bitcoin_mempool_max_bytes {info['maxmempool']}")
    shows("bitcoin_mempool_size 0")

with subtest("blocks and a reorg are counted exactly"):
    cli("generatetodescriptor 5 'raw(51)'")
    shows("bitcoin_blocks_connected_total 5")
    cli("invalidateblock " + cli("getblockhash 105"))
    cli("generatetodescriptor 3 'raw(52)'")
    shows("bitcoin_blocks_disconnected_total 2")
    shows("bitcoin_blocks_connected_total 8")
    shows("bitcoin_chain_height 107")

with subtest("the node restarts, and the exporter is back with it"):
    machine.succeed("systemctl restart bitcoind.service")
    machine.wait_until_succeeds("test -S /run/bitcoind/node.sock")
    shows("bitcoin_up 1")
    shows("bitcoin_chain_height 107")
