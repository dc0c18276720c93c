# Tests that a real Prometheus server scrapes both exporters, and that both exporters have counted the same number of
# events.
import json
import shlex

QUERY = "curl -sf --max-time 20 -G http://127.0.0.1:9090/api/v1/query --data-urlencode "


def query(expression):
    answer = json.loads(machine.succeed(QUERY + shlex.quote("query=" + expression)))
    return [float(sample["value"][1]) for sample in answer["data"]["result"]]


def eventually(expression, values):
    jq = "import json, sys; print([float(s[\"value\"][1]) for s in json.load(sys.stdin)[\"data\"][\"result\"]])"
    machine.wait_until_succeeds(
        QUERY + shlex.quote("query=" + expression) + f" | python3 -c {shlex.quote(jq)} | grep -xF {shlex.quote(str(values))}")


start_all()
machine.succeed("systemctl start bitcoind.service", "systemctl start bitcoind-ipc-exporter.socket",
                "systemctl start bitcoind-usdt-exporter.service")
machine.wait_until_succeeds("curl -sf http://127.0.0.1:9436/ready")
machine.wait_until_succeeds("curl -sf --max-time 20 http://127.0.0.1:9332/readyz")
machine.succeed("systemctl start prometheus.service")

with subtest("both are scraped"):
    eventually("up", [1.0, 1.0])
    eventually("bitcoin_up", [1.0])

with subtest("blocks counted over IPC are those that the tracepoints told"):
    machine.succeed("bitcoin-cli generatetodescriptor 12 'raw(51)'")
    eventually("sum(bitcoin_blocks_connected_total{job=\"bitcoind-ipc\"})", [12.0])
    eventually("sum by () (bitcoin_blocks_connected_total{job=\"bitcoind-ipc\"}) "
               "== sum by () (bitcoin_blocks_connected_total{job=\"bitcoind-usdt\"})", [12.0])

with subtest("a node that is gone is seen as such, with nothing stale"):
    machine.succeed("systemctl stop bitcoind.service")
    eventually("fibre_exporter_probes_attached", [0.0])
    eventually("bitcoin_up", [0.0])
    assert query("bitcoin_chain_height") == [], "a height of a node that is gone"
    machine.fail("systemctl is-active bitcoind.service")
