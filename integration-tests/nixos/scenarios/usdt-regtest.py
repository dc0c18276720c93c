# Tests the USDT exporter as a systemd service that has two capabilities and does not run as root.
import json

SCRAPE = "curl -sf --max-time 20 http://127.0.0.1:9435/metrics"


def mine(blocks):
    return machine.succeed(f"bitcoin-cli generatetodescriptor {blocks} 'raw(51)'")


start_all()
with subtest("it waits for the node"):
    machine.succeed("systemctl start bitcoind-usdt-exporter.service")
    machine.wait_until_succeeds("curl -s http://127.0.0.1:9436/ready | grep 'no process of .*/bitcoin-node is running'")
    machine.succeed("systemctl start bitcoind.service")
    machine.wait_until_succeeds("curl -sf http://127.0.0.1:9436/ready")

with subtest("it counts, and is not root"):
    mine(3)
    machine.succeed(f"{SCRAPE} | grep -x 'bitcoin_blocks_connected_total{{node=\"machine\"}} 3'")
    machine.succeed(f"{SCRAPE} | grep -x 'fibre_exporter_probes_attached{{node=\"machine\"}} 16'")
    pid = machine.succeed("systemctl show -P MainPID bitcoind-usdt-exporter").strip()
    assert int(machine.succeed(f"stat -c %u /proc/{pid}")) != 0

with subtest("a block is found in the journal by its height and by how long it took"):
    entry = json.loads(machine.wait_until_succeeds("journalctl -o json BLOCK_HEIGHT=2 | grep ."))
    hashes = machine.succeed("bitcoin-cli getblockhash 2").strip()
    assert entry["BLOCK_HASH"] == hashes, entry
    slow = machine.succeed(
        "journalctl -o json -u bitcoind-usdt-exporter.service MESSAGE='block connected' | python3 -c '"
        "import json, sys\n"
        "for line in sys.stdin:\n"
        "    block = json.loads(line)\n"
        "    if int(block[\"DURATION_US\"]) > 0: print(block[\"BLOCK_HEIGHT\"], block[\"DURATION_US\"])'")
    assert len(slow.splitlines()) == 3, slow

with subtest("a block is found in the record, also while the exporter writes it"):
    rows = machine.succeed(f"/proc/{pid}/exe blocks --format json").splitlines()
    assert [json.loads(row)["block_height"] for row in rows] == [1, 2, 3], rows

with subtest("the node restarts, and the counts go on"):
    machine.succeed("systemctl restart bitcoind.service")
    machine.wait_until_succeeds("journalctl -u bitcoind-usdt-exporter.service | grep -c 'attached 16 tracepoints' | grep -x 2")
    mine(1)
    machine.succeed(f"{SCRAPE} | grep -x 'bitcoin_blocks_connected_total{{node=\"machine\"}} 4'")

with subtest("its other name"):
    machine.succeed("systemctl is-active fibre-exporter.service")
