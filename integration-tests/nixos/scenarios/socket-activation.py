# Tests the IPC exporter as a systemd service with socket activation. The first scrape starts the exporter. The exporter can
# reach the node only through the connection that systemd passes to it. The exporter exits when the node exits, and a scrape
# after the node's next start starts the exporter again.
import json

SCRAPE = "curl -sf --max-time 20 http://127.0.0.1:9332/metrics"


def mine(blocks):
    machine.succeed(f"bitcoin-cli generatetodescriptor {blocks} 'raw(51)'")


def pid_of(name):
    """PID of the newest process with this name."""
    files = machine.succeed(f"grep -slx {name} /proc/[0-9]*/comm || true").split()
    return max(int(file.split("/")[2]) for file in files)


def main_pid():
    return machine.succeed("systemctl show -P MainPID bitcoind-ipc-exporter").strip()


start_all()
machine.succeed("systemctl start bitcoind.service")
machine.wait_until_succeeds("test -S /run/bitcoind/node.sock")
mine(3)

with subtest("the first scrape starts the service"):
    machine.succeed("systemctl start bitcoind-ipc-exporter.socket")
    machine.fail("systemctl is-active bitcoind-ipc-exporter.service")
    machine.wait_until_succeeds(f"{SCRAPE} | grep -x 'bitcoin_chain_height 3'")
    machine.wait_for_unit("bitcoind-ipc-exporter.service")
    machine.wait_until_succeeds(f"{SCRAPE} | grep -x 'bitcoin_up 1'")

with subtest("its own process is known, though /proc is hidden from it"):
    for sample in ["start_time_seconds", "cpu_seconds_total", "resident_memory_bytes", "open_fds"]:
        machine.succeed(f"{SCRAPE} | grep '^process_{sample} '")

with subtest("its dynamic user has no other way to the socket"):
    user = int(machine.succeed("stat -c %u /proc/" + main_pid()))
    assert 61184 <= user <= 65519, f"not a dynamic user: {user}"
    machine.fail("setpriv --reuid=65000 --regid=65000 --clear-groups "
                 "bitcoind-ipc-exporter --check /run/bitcoind/node.sock")

with subtest("it is hardened"):
    units = {"bitcoind-ipc-exporter.service": 1.2, "bitcoind-usdt-exporter.service": 3.0}
    for unit, limit in units.items():
        table = json.loads(machine.succeed(f"systemd-analyze security --json=short --no-pager {unit}"))
        exposure = machine.succeed(f"systemd-analyze security --no-pager {unit} | tail -n 1")
        value = float(exposure.split(": ")[1].split()[0])
        print(unit, "exposure", value, "worst:", sorted(
            [(row["exposure"], row["name"]) for row in table if row.get("exposure")], reverse=True)[:6])
        assert value <= limit, exposure

with subtest("an exporter that is killed is started again, and the node lives"):
    machine.succeed("kill -9 " + main_pid())
    machine.wait_until_succeeds(f"{SCRAPE} | grep -x 'bitcoin_up 1'")
    mine(1)
    machine.succeed("systemctl is-active bitcoind.service")

with subtest("all of its processes are confined, and its main process notifies for the one that serves"):
    for name in ["bitcoind-export", "bitcoind-guard"]:
        status = machine.succeed(f"cat /proc/{pid_of(name)}/status")
        assert "\nSeccomp:\t2\n" in status and "\nNoNewPrivs:\t1\n" in status, status
    # Landlock is not checked, because the seccomp filter of old versions of systemd-nspawn forbids Landlock.
    machine.succeed(f"{SCRAPE} | grep -Fx 'bitcoin_exporter_sandbox{{part=\"seccomp\"}} 1'")
    machine.succeed(f"kill -9 {pid_of('bitcoind-export')}")
    machine.wait_until_succeeds(f"{SCRAPE} | grep -x 'bitcoin_up 1'")
    mine(1)
    machine.succeed("systemctl is-active bitcoind.service")

with subtest("a restart drops no connection attempt"):
    machine.succeed("for i in $(seq 40); do curl -sf --max-time 20 -o /dev/null http://127.0.0.1:9332/livez || exit 1; "
                    "sleep 0.05; done & scrapes=$!; for i in 1 2 3; do systemctl restart bitcoind-ipc-exporter.service; "
                    "done; wait $scrapes")

with subtest("the watchdog kills one that is stopped"):
    stopped = main_pid()
    machine.succeed("systemctl show -P WatchdogUSec bitcoind-ipc-exporter | grep -x 30s")
    machine.succeed("mkdir -p /run/systemd/system/bitcoind-ipc-exporter.service.d",
                    "printf '[Service]\\nWatchdogSec=3\\n' > /run/systemd/system/bitcoind-ipc-exporter.service.d/test.conf",
                    "systemctl daemon-reload", "systemctl restart bitcoind-ipc-exporter.service")
    stopped = main_pid()
    machine.succeed(f"kill -STOP {pid_of('bitcoind-export')}")
    machine.wait_until_succeeds(f"test $(systemctl show -P MainPID bitcoind-ipc-exporter) != {stopped}", 40)
    machine.wait_until_succeeds(f"{SCRAPE} | grep -x 'bitcoin_up 1'")
    machine.succeed("systemctl is-active bitcoind.service")

with subtest("the journal has its fields"):
    entries = machine.succeed("journalctl -o json -u bitcoind-ipc-exporter.service "
                              "MESSAGE=\"the node's interfaces\"").splitlines()
    entry = json.loads(entries[0])
    # Only the first interface is compared, because the node of the NixOS VM tests has other interfaces.
    assert entry["PRIORITY"] == "6" and entry["OFFERED"].startswith("mining"), entry

with subtest("a node that ends in order is no failure, and the next scrape finds the next node"):
    machine.succeed("systemctl stop bitcoind.service")
    machine.wait_until_fails("systemctl is-active bitcoind-ipc-exporter.service")
    machine.fail("systemctl is-failed bitcoind-ipc-exporter.service")
    machine.succeed(f"{SCRAPE} | grep -x 'bitcoin_up 0'")
    machine.fail("systemctl is-active bitcoind.service")  # A scrape must not start a node that was stopped.
    machine.succeed("systemctl start bitcoind.service")
    machine.wait_until_succeeds(f"{SCRAPE} | grep -x 'bitcoin_up 1'")

with subtest("a node that is killed is seen as away, and found again"):
    machine.succeed("systemctl kill -s KILL bitcoind.service")
    machine.wait_until_succeeds(f"{SCRAPE} | grep -x 'bitcoin_up 0'")
    machine.succeed("systemctl start bitcoind.service")
    machine.wait_until_succeeds(f"{SCRAPE} | grep -x 'bitcoin_up 1'")

with subtest("uninstalling leaves nothing"):
    machine.succeed("systemctl stop bitcoind-ipc-exporter.socket bitcoind-ipc-exporter.service")
    # Because of the brackets, the pattern does not match the command line of this grep process.
    machine.wait_until_fails("grep -qsz -e 'bitcoind[-]ipc' /proc/[0-9]*/cmdline")
    machine.fail("ls -d /var/lib/*ipc-exporter* /var/lib/private/*ipc-exporter* /run/*ipc-exporter*")
