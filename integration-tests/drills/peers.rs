//! Drills (fault injection tests of the alerts) with faults of P2P peers: missing peers, peers of one address group,
//! peers that send no transactions, and peers that overload the node.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use bitcoin::bip152::BlockTransactionsRequest;
use bitcoin::p2p::ServiceFlags;
use bitcoin::p2p::address::{AddrV2, AddrV2Message};
use bitcoin::p2p::message::NetworkMessage;
use bitcoin::p2p::message_compact_blocks::GetBlockTxn;

use crate::background::beside;
use crate::fleet::{FACTOR, Fleet, Kind, Plan, critical, warning};
use crate::harness::eventually;
use crate::harness::peer::{Peer, unix_time};
use crate::network::Network;

/// Drill 11 in docs/alerts.md: the nodes lose their only outbound peer.
pub fn node_without_outbound_peers_is_an_alert() {
    let fleet = Fleet::start("11 no outbound peer", Kind::REAL.map(Plan::new).into());
    fleet.quiet(2.0);
    let since = Instant::now();
    fleet.network.hub.cli(&["setnetworkactive", "false"]);
    fleet.expect(since, &fleet.names(), &[critical("BitcoinNoOutboundPeers")], 15.0);
}

/// A SOCKS5 proxy that connects every requested address to the same node.
struct Socks {
    port: u16,
    ended: Arc<AtomicBool>,
}

impl Socks {
    fn start(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let ended = Arc::new(AtomicBool::new(false));
        let end = ended.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if end.load(Relaxed) {
                    return;
                }
                std::thread::spawn(move || connect(client, target));
            }
        });
        Socks { port, ended }
    }
}

impl Drop for Socks {
    fn drop(&mut self) {
        self.ended.store(true, Relaxed);
        let _ = TcpStream::connect(("127.0.0.1", self.port)); // a connection makes the blocking accept return
    }
}

/// Handles a SOCKS5 connection (RFC 1928), as far as Bitcoin Core uses the protocol.
fn connect(mut client: TcpStream, target: u16) -> Option<()> {
    let mut greeting = [0; 2];
    client.read_exact(&mut greeting).ok()?;
    client.read_exact(&mut vec![0; greeting[1].into()]).ok()?;
    client.write_all(&[5, 0]).ok()?;
    let mut request = [0; 5];
    client.read_exact(&mut request).ok()?;
    let rest = if request[3] == 3 { usize::from(request[4]) + 2 } else { 5 };
    client.read_exact(&mut vec![0; rest]).ok()?;
    let node = TcpStream::connect(("127.0.0.1", target)).ok()?;
    client.write_all(&[5, 0, 0, 1, 127, 0, 0, 1, 0, 0]).ok()?;
    let ends = [(client.try_clone().ok()?, node.try_clone().ok()?), (node, client)];
    for (mut from, mut to) in ends {
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Both);
        });
    }
    Some(())
}

/// Drill 11 in docs/alerts.md: all outbound peers of the nodes are in one /16 network, and the nodes have 12 inbound
/// peers.
pub fn outbound_peers_of_one_group_are_an_alert() {
    let network = Network::start(FACTOR);
    let socks = Socks::start(network.hub.p2p_port);
    let proxy = format!("-proxy=127.0.0.1:{}", socks.port);
    let plan = |kind: Kind, name: &str, addresses: &dyn Fn(u32) -> String| {
        let connect: Vec<_> = (0..8).map(|at| format!("-connect={}", addresses(at))).collect();
        let arguments: Vec<_> = connect.iter().map(String::as_str).chain([proxy.as_str()]).collect();
        Plan::new(kind).named(name).alone().node(&arguments)
    };
    let one = |at: u32| format!("8.8.{at}.1:8333");
    let plans = vec![
        plan(Kind::Rpc, "rpc", &one),
        plan(Kind::RpcOverHttp, "rpc-over-http", &one),
        plan(Kind::HttpOnly, "http-only", &one),
        // The outbound peers of this node are in different /16 networks, as those that a node chooses by default.
        plan(Kind::Rpc, "well", &|at| format!("{}.8.8.1:8333", 40 + at)).without_usdt(),
    ];
    let fleet = Fleet::start_on("11 one group", FACTOR, network, plans);
    let inbound: Vec<_> = fleet
        .members
        .iter()
        .flat_map(|it| (0..12).map(|_| Peer::connect(it.real().p2p_port)).collect::<Vec<_>>())
        .collect();
    let names: Vec<_> = fleet.names().into_iter().filter(|it| it != "well").collect();
    let since = fleet.since;
    fleet.expect(since, &names, &[warning("BitcoinOutboundPeersOfOneGroup")], 15.0);
    drop(inbound);
}

/// Drill 12 in docs/alerts.md: the peer of the nodes sends no transactions. The alert must not fire for the node with
/// -blocksonly.
pub fn peers_without_transactions_are_an_alert() {
    let blocks_only = Plan::new(Kind::Rpc).named("blocksonly").without_usdt().node(&["-blocksonly"]);
    let plans = Kind::REAL.into_iter().map(Plan::new).chain([blocks_only]).collect();
    let fleet = Fleet::start("12 no transactions", plans);
    let names: Vec<_> = fleet.names().into_iter().filter(|it| it != "blocksonly").collect();
    for member in fleet.members.iter().filter(|it| it.name() != "blocksonly") {
        eventually("transactions arrive", || {
            (member.real().json(&["getmempoolinfo"])["size"] != 0).then_some(())
        });
    }
    fleet.quiet(2.0);
    let since = Instant::now();
    fleet.network.pace.transactions.store(false, Relaxed);
    fleet.expect(since, &names, &[warning("BitcoinNoTransactions")], 40.0);
}

/// Drill 13 in docs/alerts.md: the clocks of most peers are 15 minutes ahead of the node's clock.
pub fn clock_that_differs_from_most_peers_is_an_alert() {
    let right = Plan::new(Kind::Rpc).named("right").without_usdt();
    let fleet = Fleet::start("13 clocks", Kind::REAL.into_iter().map(Plan::new).chain([right]).collect());
    let since = Instant::now();
    let peers: Vec<_> = fleet
        .members
        .iter()
        .flat_map(|member| {
            let offset = if member.name() == "right" { 0 } else { 900 };
            (0..8).map(|_| Peer::connect_with_clock(member.real().p2p_port, offset)).collect::<Vec<_>>()
        })
        .collect();
    let names: Vec<_> = fleet.names().into_iter().filter(|it| it != "right").collect();
    fleet.expect(since, &names, &[warning("BitcoinClockOff")], 30.0);
    drop(peers);
}

/// Drill 27 in docs/alerts.md: 30 peers violate the protocol.
pub fn peers_that_misbehave_are_an_alert() {
    let fleet = Fleet::start("27 misbehaving peers", vec![Plan::new(Kind::Rpc)]);
    fleet.quiet(2.0);
    let since = Instant::now();
    for _ in 0..30 {
        let mut peer = Peer::connect(fleet.members[0].real().p2p_port);
        // An inv message may have at most 50,000 entries.
        let too_many = vec![bitcoin::p2p::message_blockdata::Inventory::Error; 50_001];
        peer.send(NetworkMessage::Inv(too_many));
        // Keep the connection open until the node has handled the message, because a node drops a peer's unhandled
        // messages when the connection is closed. The node does not disconnect the misbehaving peers, because they have
        // the permission noban.
        peer.wait_until_handled();
    }
    fleet.expect(since, &["rpc".into()], &[warning("BitcoinPeersMisbehave")], 30.0);
}

/// Drill 27 in docs/alerts.md: a peer sends many addresses to each node.
pub fn flood_of_addresses_is_an_alert() {
    let fleet = Fleet::start("27 address flood", Kind::REAL.map(Plan::new).into());
    fleet.quiet(2.0);
    let since = Instant::now();
    let mut peers: Vec<_> = fleet.members.iter().map(|it| Peer::connect(it.real().p2p_port)).collect();
    // The peer sends 0.6 MB of addresses per simulated minute for 25 simulated minutes. BitcoinAddressFlood fires after
    // its condition has held for 5 simulated minutes.
    for round in 0..50 {
        for of_round in 0..24 {
            for peer in &mut peers {
                peer.send(NetworkMessage::AddrV2(addresses(24 * round + of_round)));
            }
        }
        fleet.stack.wait(fleet.stack.minutes(0.5));
    }
    fleet.expect(since, &fleet.names(), &[warning("BitcoinAddressFlood")], 30.0);
}

fn addresses(round: u32) -> Vec<AddrV2Message> {
    let address = |at: u32| AddrV2Message {
        time: unix_time(),
        services: ServiceFlags::NETWORK,
        addr: AddrV2::Ipv4((0x0800_0000 + round * 1000 + at).into()),
        port: 8333,
    };
    (0..1000).map(address).collect()
}

/// Drill 27 in docs/alerts.md: each node has thousands of transactions to announce to a peer without the permission
/// noban, to which the node announces a limited number of transactions per second.
pub fn backlog_of_announcements_is_an_alert() {
    let network = Network::start(FACTOR);
    let connect = format!("-connect={}", network.address());
    let plan = |kind: Kind| {
        Plan::new(kind).alone().node(&[connect.as_str(), "-whitelist=noban,relay,out@127.0.0.1"])
    };
    let fleet = Fleet::start_on("27 inv backlog", FACTOR, network, Kind::REAL.map(plan).into());
    let hub = &fleet.network.hub;
    for member in &fleet.members {
        eventually("the node has the blocks of its peer", || {
            member.real().try_cli(&["getblockhash", "160"]).is_ok().then_some(())
        });
    }
    fleet.quiet(2.0);
    let peers: Vec<_> =
        fleet.members.iter().map(|it| Peer::connect_for_transactions(it.real().p2p_port)).collect();
    // Stop mining, because a new block would confirm most of the transactions.
    fleet.network.pace.blocks.store(0, Relaxed);
    // Spend the coinbase of block 61, because the hub spends the coinbases of the first 60 blocks in other
    // transactions.
    hub.fan_out(&hub.cli(&["getblockhash", "61"]), 9_000);
    let since = Instant::now();
    fleet.expect(since, &fleet.names(), &[warning("BitcoinInvBacklog")], 30.0);
    drop(peers);
}

/// Drill 27 in docs/alerts.md: two peers repeatedly request a transaction of a large block. For each request, the node
/// reads the whole block.
pub fn message_handler_without_time_left_is_an_alert() {
    let fleet = Fleet::start("27 message handler", vec![Plan::new(Kind::Rpc).without_usdt()]);
    let (hub, node) = (&fleet.network.hub, fleet.members[0].real());
    hub.fan_out(&hub.cli(&["getblockhash", "61"]), 5_000);
    let large = hub.mine(1).remove(0);
    // The node serves its newest block from memory, and reads older blocks from disk.
    let latest = hub.mine(1).remove(0);
    eventually("the node has the blocks", || {
        node.try_cli(&["getblockheader", &latest]).is_ok().then_some(())
    });
    fleet.quiet(2.0);
    let since = Instant::now();
    let mut peers = [(); 2].map(|()| Peer::connect(node.p2p_port));
    let txs_request = BlockTransactionsRequest { block_hash: large.parse().unwrap(), indexes: vec![0] };
    // With two peers, the node is always busy: while one peer reads its response, the node handles the request of the
    // other peer.
    let requests = || {
        for peer in &mut peers {
            peer.wait_until_handled();
            for _ in 0..16 {
                peer.send(NetworkMessage::GetBlockTxn(GetBlockTxn { txs_request: txs_request.clone() }));
            }
        }
    };
    let expected = [warning("BitcoinMessageHandlerBusy")];
    beside(requests, || fleet.expect(since, &fleet.names(), &expected, 30.0));
}
