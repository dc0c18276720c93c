# Tests an exporter that is PID 1 of a PID namespace, as in a container. After each kind of exit of the exporter, the node must
# still run, and it must be possible to stop the node cleanly.
RUN = "unshare --pid --fork --kill-child --mount-proc bitcoind-ipc-exporter --poll-interval 5ms"
SOCKET = "/run/bitcoind/node.sock"


def child(parent, command):
    """PID of the child process of `parent` with this name."""
    pids = machine.succeed(f"cat /proc/{parent}/task/{parent}/children").split()
    names = {machine.succeed(f"cat /proc/{pid}/comm").strip(): pid for pid in pids}
    return names[command]


def run(name, command):
    machine.succeed(f"systemd-run --unit={name} -p KillMode=process -p SuccessExitStatus=137 -p Type=exec "
                    f"{command} --metrics-addr unix:/run/{name}.sock {SOCKET}")
    machine.wait_until_succeeds(f"curl -sf --unix-socket /run/{name}.sock http://localhost/metrics | grep -x 'bitcoin_up 1'")


def start(name):
    run(name, RUN)
    # The main process of the unit is `unshare`. The child process of `unshare` is the supervisor, which is PID 1 of the
    # namespace. The child processes of the supervisor are the exporter and the guard.
    unshare = machine.succeed(f"systemctl show -P MainPID {name}").strip()
    init = child(unshare, "bitcoind-ipc-ex")
    exporter = child(init, "bitcoind-export")
    child(init, "bitcoind-guard")
    return init, exporter


start_all()
machine.succeed("systemctl start bitcoind.service")
machine.wait_until_succeeds(f"test -S {SOCKET}")

for round in range(3):
    with subtest(f"SIGTERM of PID 1 ({round})"):
        init, _ = start(f"term{round}")
        machine.succeed(f"kill -TERM {init}")
        machine.wait_until_succeeds(f"systemctl show -P ActiveState term{round} | grep -x inactive")
    with subtest(f"SIGKILL of the exporter ({round})"):
        _, exporter = start(f"kill{round}")
        machine.succeed(f"kill -KILL {exporter}")
        machine.wait_until_succeeds(f"systemctl show -P ActiveState kill{round} | grep -x inactive")
    with subtest(f"SIGTERM of PID 1 with a second exporter in the namespace, as by docker exec ({round})"):
        init, _ = start(f"first{round}")
        run(f"second{round}", f"nsenter --target {init} --pid --mount bitcoind-ipc-exporter --poll-interval 5ms")
        machine.succeed(f"kill -TERM {init}")
        for name in ["first", "second"]:
            machine.wait_until_succeeds(f"systemctl show -P ActiveState {name}{round} | grep -x inactive")
    machine.succeed("bitcoin-cli generatetodescriptor 1 'raw(51)'")

with subtest("the node stops in order"):
    machine.succeed("bitcoin-cli stop")
    machine.wait_until_succeeds("systemctl show -P ActiveState bitcoind.service | grep -x inactive")
    machine.succeed("systemctl show -P Result bitcoind.service | grep -x success")
