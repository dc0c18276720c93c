# Tests the IPC exporter's unit with the drop-in for a node without IPC. The exporter uses JSON-RPC over HTTP on loopback,
# with a password file that only root can read.

SCRAPE = "curl -sf --max-time 20 http://127.0.0.1:9332/metrics"
UNIT = "bitcoind-ipc-exporter.service"
# The output of Bitcoin Core's share/rpcauth/rpcauth.py for the password "one password".
RPCAUTH = "exporter:salt$f52d05b9ffcd47952cec8f4d416b1fbe3b5128487afc13ed9cb0dd8a0bfc21fc"


def mine(blocks):
    machine.succeed(f"bitcoin-cli generatetodescriptor {blocks} 'raw(51)'")


def shows(sample):
    machine.wait_until_succeeds(f"{SCRAPE} | grep -xF '{sample}'")


start_all()
with subtest("the drop-in is all that it takes"):
    machine.succeed(
        "mkdir -p /etc/bitcoind-ipc-exporter /var/lib/bitcoind /etc/systemd/system/%s.d" % UNIT,
        "sed -i 's| -ipcbind=[^ ]*||' /etc/systemd/system/bitcoind.service",
        f"echo 'rpcauth={RPCAUTH}' > /var/lib/bitcoind/bitcoin.conf",
        "umask 077; echo 'one password' > /etc/bitcoind-ipc-exporter/rpc-password",
        f"sed 's/--chain main/--chain regtest/' /usr/lib/systemd/system/{UNIT}.d/without-ipc.conf.example "
        f"> /etc/systemd/system/{UNIT}.d/without-ipc.conf",
        "systemctl daemon-reload && systemctl start bitcoind.service",
    )
    mine(3)
    machine.fail("test -e /run/bitcoind/node.sock")
    shows("bitcoin_up 1")
    shows('bitcoin_exporter_interface{interface="http-rpc"} 1')
    shows("bitcoin_blocks_connected_total 0")
    mine(4)
    shows("bitcoin_blocks_connected_total 4")

with subtest("it reaches loopback and no other address, and not the file of the password"):
    pid = machine.succeed(f"systemctl show -P MainPID {UNIT}").strip()
    user = machine.succeed(f"stat -c %u /proc/{pid}").strip()
    assert 61184 <= int(user) <= 65519, f"not a dynamic user: {user}"
    machine.fail(f"setpriv --reuid={user} --regid={user} --clear-groups cat /etc/bitcoind-ipc-exporter/rpc-password")
    machine.succeed(f"systemctl show -P IPAddressDeny {UNIT} | grep -F 0.0.0.0/0",
                    f"systemctl show -P IPAddressAllow {UNIT} | grep -F 127.0.0.0/8")
    exposure = machine.succeed(f"systemd-analyze security --no-pager {UNIT} | tail -n 1")
    print(exposure)
    assert float(exposure.split(": ")[1].split()[0]) <= 1.5, exposure

with subtest("the node restarts, with another cookie, and nobody has to do anything"):
    machine.succeed("systemctl stop bitcoind.service")
    shows("bitcoin_up 0")
    assert machine.succeed(f"systemctl show -P MainPID {UNIT}").strip() == pid
    machine.succeed("systemctl start bitcoind.service")
    shows("bitcoin_up 1")
    mine(2)
    shows("bitcoin_blocks_connected_total 6")
    shows("bitcoin_chain_height 9")
