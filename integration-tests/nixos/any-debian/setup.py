# Tests the subcommand `setup` with a node that has the systemd unit in Bitcoin Core's contrib/init, but on regtest. The
# scenario tests `setup` without a node and with a read-only /etc, the changes that `--write` makes, the metrics after these
# changes, and `--undo`.
SCRAPE = "curl -sf --max-time 20 http://127.0.0.1:9332/metrics"
SETUP = "bitcoind-ipc-exporter setup"
UNIT = r"""[Unit]
Description=Bitcoin daemon
[Service]
Environment=LD_LIBRARY_PATH=/opt/node/lib
ExecStart=/usr/local/bin/bitcoind -pid=/run/bitcoind/bitcoind.pid \
                            -conf=/etc/bitcoin/bitcoin.conf \
                            -datadir=/var/lib/bitcoind \
                            -startupnotify='systemd-notify --ready' \
                            -shutdownnotify='systemd-notify --stopping'
ExecStartPre=!/bin/chgrp bitcoin /etc/bitcoin
Type=notify
NotifyAccess=all
PIDFile=/run/bitcoind/bitcoind.pid
TimeoutStopSec=600
User=bitcoin
RuntimeDirectory=bitcoind
RuntimeDirectoryMode=0710
ConfigurationDirectory=bitcoin
ConfigurationDirectoryMode=0710
StateDirectory=bitcoind
StateDirectoryMode=0710
PrivateTmp=true
ProtectSystem=full
ProtectHome=true
NoNewPrivileges=true
PrivateDevices=true
MemoryDenyWriteExecute=true
"""
CONF = "regtest=1\nlisten=0\n[regtest]\nrpcport=18443\n"


def digest():
    return machine.succeed("cd /etc && find . -type f -exec sha256sum {} + -o -printf '%p %m\\n' | sort | grep -v ld.so.cache")


def put(path, text):
    machine.succeed(f"mkdir -p $(dirname {path}); cat > {path} <<'END_OF_FILE'\n{text}END_OF_FILE")


start_all()
put("/etc/systemd/system/bitcoind.service", UNIT)
put("/etc/bitcoin/bitcoin.conf", CONF)
# As in a release of Bitcoin Core, bitcoind is in the folder bin, and bitcoin-node is in the folder libexec. The file
# bitcoind is a copy of bitcoin-node, which has no IPC socket without -ipcbind. The unit starts bitcoind by a symbolic link.
RELEASE = "/opt/bitcoin-31.0"
machine.succeed(f"mkdir -p {RELEASE}/bin {RELEASE}/libexec /etc/prometheus && chgrp bitcoin /etc/bitcoin && chmod 710 /etc/bitcoin",
                f"cp /usr/bin/bitcoin-node {RELEASE}/libexec && cp /usr/bin/bitcoin-node {RELEASE}/bin/bitcoind",
                f"ln -s {RELEASE}/bin/bitcoind /usr/local/bin/bitcoind; rm /usr/bin/bitcoin-node; systemctl daemon-reload")

with subtest("no node runs"):
    output = machine.fail(f"{SETUP} --write")
    assert "no node is running; start the node" in output, output

with subtest("a path that would stay with the old version after an upgrade is a problem"):
    machine.succeed("systemctl start bitcoind.service")
    before = digest()
    output = machine.fail(f"{SETUP} --write")
    command = f"ln -s {RELEASE}/libexec/bitcoin-node /usr/local/bin/bitcoin-node"
    assert "/usr/local/bin/bitcoind is a symbolic link" in output and f"Run: {command} " in output, output
    assert digest() == before
    machine.succeed(command)

with subtest("the findings are printed, and nothing changes"):
    output = machine.succeed(SETUP)
    print(output)
    for line in ["runs in        bitcoind.service", "IPC socket     none", "RuntimeDirectory=bitcoind",
                 "-startupnotify='systemd-notify --ready' -shutdownnotify='systemd-notify --stopping' "
                 "-ipcbind=unix:/run/bitcoind/node.sock", "ExecStart=/usr/local/bin/bitcoin-node -pid="]:
        assert line in output, f"{line} is missing"
    assert digest() == before

with subtest("another user and a read-only /etc: a problem is reported, and nothing changes"):
    output = machine.fail(f"setpriv --reuid=65534 --regid=65534 --clear-groups {SETUP} --write")
    assert "the node belongs to user bitcoin; run setup as root" in output, output
    output = machine.fail(f"unshare --mount sh -ec 'mount --bind /etc /etc; mount -o remount,bind,ro /etc; {SETUP} --write'")
    assert "cannot write to /etc" in output and "Read-only file system" in output, output
    assert digest() == before

with subtest("the changes are written, and the node is not restarted"):
    pid = machine.succeed("systemctl show -P MainPID bitcoind.service").strip()
    print(machine.succeed(f"{SETUP} --write"))
    assert "Nothing has to be changed." in machine.succeed(f"{SETUP} --write")
    assert pid == machine.succeed("systemctl show -P MainPID bitcoind.service").strip()

with subtest("after the commands that it prints there are metrics over IPC"):
    machine.succeed("systemctl daemon-reload", "systemctl restart bitcoind.service",
                    "systemctl enable --now bitcoind-ipc-exporter.socket", "systemctl try-restart bitcoind-ipc-exporter.service")
    machine.succeed("test -S /run/bitcoind/node.sock", "systemctl is-active bitcoind.service")
    machine.wait_until_succeeds(f"{SCRAPE} | grep -x 'bitcoin_up 1'")
    machine.succeed(f"{SCRAPE} | grep -xF 'bitcoin_exporter_interface{{interface=\"mining\"}} 1'")
    machine.succeed(f"{SCRAPE} | grep -F 'bitcoin_peers '")
    assert "Nothing has to be changed." in machine.succeed(f"{SETUP} --write")

with subtest("an upgrade changes the links, and the unit runs the new version"):
    machine.succeed("cp -r /opt/bitcoin-31.0 /opt/bitcoin-32.0 && ln -sf /opt/bitcoin-32.0/bin/bitcoind /usr/local/bin/",
                    "ln -sf /opt/bitcoin-32.0/libexec/bitcoin-node /usr/local/bin/", "systemctl restart bitcoind.service",
                    "readlink /proc/$(systemctl show -P MainPID bitcoind.service)/exe | grep -x /opt/bitcoin-32.0/libexec/bitcoin-node",
                    "grep -x BITCOIND_USDT_EXPORTER_BITCOIND=/usr/local/bin/bitcoin-node /etc/default/bitcoind-usdt-exporter")
    assert "Nothing has to be changed." in machine.succeed(f"{SETUP} --write")
    machine.wait_until_succeeds(f"{SCRAPE} | grep -x 'bitcoin_up 1'")

with subtest("an address that has no effect under socket activation is logged, and the documented drop-in changes it"):
    machine.succeed("echo BITCOIND_IPC_EXPORTER_METRICS_ADDR=127.0.0.1:9400 >> /etc/default/bitcoind-ipc-exporter",
                    "systemctl restart bitcoind-ipc-exporter.service")
    machine.wait_until_succeeds("journalctl -u bitcoind-ipc-exporter | grep -F -- '--metrics-addr 127.0.0.1:9400 has no effect'")
    machine.succeed("mkdir -p /etc/systemd/system/bitcoind-ipc-exporter.socket.d",
                    "sed s/192.0.2.1:9332/127.0.0.1:9400/ /usr/lib/systemd/system/bitcoind-ipc-exporter.socket.d/listen.conf.example "
                    "> /etc/systemd/system/bitcoind-ipc-exporter.socket.d/listen.conf",
                    "systemctl daemon-reload && systemctl stop bitcoind-ipc-exporter.service",
                    "systemctl restart bitcoind-ipc-exporter.socket")
    machine.wait_until_succeeds("curl -sf http://127.0.0.1:9400/metrics | grep -x 'bitcoin_up 1'")
    machine.fail(SCRAPE)
    machine.succeed("rm -r /etc/systemd/system/bitcoind-ipc-exporter.socket.d",
                    "sed -i /METRICS_ADDR/d /etc/default/bitcoind-ipc-exporter", "systemctl daemon-reload",
                    "systemctl stop bitcoind-ipc-exporter.service", "systemctl restart bitcoind-ipc-exporter.socket")
    machine.wait_until_succeeds(f"{SCRAPE} | grep -x 'bitcoin_up 1'")

with subtest("undone, everything is as before"):
    print(machine.succeed(f"{SETUP} --undo"))
    output = machine.succeed(SETUP)  # before systemd knows that the drop-ins are gone
    assert "runs in        bitcoind.service" in output and "is not installed" not in output, output
    machine.succeed("systemctl disable bitcoind-ipc-exporter.socket 2>/dev/null; systemctl enable bitcoind-ipc-exporter.socket")
    after = digest()
    assert after == before, f"{before}\n{after}"
    machine.succeed("systemctl daemon-reload", "systemctl restart bitcoind.service")
    assert "IPC socket     none" in machine.succeed(SETUP)

with subtest("a bitcoin-node of another release does not replace bitcoind"):
    script = "#!/bin/sh\n[ \"$1\" != -version ] || exec echo daemon version v29\nexec /opt/bitcoin-32.0/bin/bitcoind \"$@\"\n"
    machine.succeed("mv /usr/local/bin/bitcoind /root/link")
    put("/usr/local/bin/bitcoind", script)
    machine.succeed("chmod 755 /usr/local/bin/bitcoind", "systemctl restart bitcoind.service")
    output = machine.fail(f"{SETUP} --write")
    assert "but /usr/local/bin/bitcoind is daemon version v29; install bitcoin-node of the same release" in output, output
    assert digest() == before
    machine.succeed("mv /root/link /usr/local/bin/bitcoind", "systemctl restart bitcoind.service")

with subtest("a node without IPC is polled over HTTP, by a user that may call nothing else"):
    machine.succeed("sed -i 1inoipcbind=1 /etc/bitcoin/bitcoin.conf", "systemctl restart bitcoind.service")
    before = digest()
    print(machine.succeed(f"{SETUP} --write"))
    assert "Nothing has to be changed." in machine.succeed(f"{SETUP} --write")
    machine.succeed("systemctl daemon-reload", "systemctl restart bitcoind.service",
                    "systemctl try-restart bitcoind-ipc-exporter.service")
    machine.wait_until_succeeds(f"{SCRAPE} | grep -x 'bitcoin_up 1'")
    machine.succeed(f"{SCRAPE} | grep -xF 'bitcoin_exporter_interface{{interface=\"http-rpc\"}} 1'",
                    "bitcoin-cli generatetodescriptor 3 'raw(51)'")
    machine.wait_until_succeeds(f"{SCRAPE} | grep -x 'bitcoin_chain_height 3'")
    machine.fail("journalctl -u bitcoind-ipc-exporter | grep rpcwhitelist")
    password = machine.succeed("sed -n 's/.*RPC_PASSWORD=//p' /etc/default/bitcoind-ipc-exporter").strip()
    machine.fail(f"bitcoin-cli -rpcuser=exporter -rpcpassword={password} stop", "setpriv --reuid=65534 --clear-groups "
                 "cat /etc/default/bitcoind-ipc-exporter")
    machine.succeed(f"{SETUP} --undo")
    assert digest() == before

with subtest("a node with another unit and without IPC is polled over HTTP by an instance of the template unit"):
    machine.succeed("systemctl stop bitcoind.service", "mv /etc/systemd/system/bitcoind.service /etc/systemd/system/mynode.service",
                    "systemctl daemon-reload", "systemctl start mynode.service")
    machine.wait_until_succeeds(f"{SETUP} | grep -F 'metrics now, over http-rpc'")
    output = machine.succeed(f"{SETUP} --write")
    assert "systemctl disable --now bitcoind-ipc-exporter.socket" in output, output
    machine.succeed("systemctl daemon-reload", "systemctl restart mynode.service",
                    "systemctl enable bitcoind-ipc-exporter@mynode.service && systemctl restart bitcoind-ipc-exporter@mynode.service")
    machine.wait_until_succeeds("curl -sf http://127.0.0.1:9333/metrics | grep -x 'bitcoin_up 1'")
    machine.fail("test $(stat -c %U /proc/$(systemctl show -P MainPID bitcoind-ipc-exporter@mynode.service)) = bitcoin")
    machine.succeed(f"{SETUP} --undo", "systemctl disable --now bitcoind-ipc-exporter@mynode.service",
                    "systemctl stop mynode.service", "rm -f /etc/systemd/system/mynode.service; systemctl daemon-reload")
    before = digest()

with subtest("a node in another PID namespace counts as one in a container"):
    machine.succeed("mkdir /root/other",
                    "LD_LIBRARY_PATH=/opt/node/lib setsid unshare --pid --fork --kill-child /usr/local/bin/bitcoind -regtest "
                    "-datadir=/root/other -connect=0 -listen=0 >/dev/null 2>&1 </dev/null &")
    machine.wait_until_succeeds(f"{SETUP} --write | grep -F 'the node runs in a container, which setup cannot change'")
    assert digest() == before
