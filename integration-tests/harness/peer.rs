//! A P2P peer of a node on regtest, which sends the messages that a test requests.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bitcoin::bip152::HeaderAndShortIds;
use bitcoin::block::{Block, Header};
use bitcoin::consensus::{deserialize, serialize};
use bitcoin::hashes::Hash;
use bitcoin::p2p::address::Address;
use bitcoin::p2p::message::{NetworkMessage, RawNetworkMessage};
use bitcoin::p2p::message_compact_blocks::{CmpctBlock, SendCmpct};
use bitcoin::p2p::message_network::VersionMessage;
use bitcoin::p2p::{Magic, ServiceFlags};
use bitcoin::script::{Builder, ScriptBuf};
use bitcoin::{
    Amount, CompactTarget, OutPoint, Sequence, Transaction, TxIn, TxMerkleNode, TxOut, Witness, absolute,
    block, transaction,
};

/// A P2P connection to a node. The connection is closed when this value is dropped.
pub struct Peer {
    stream: TcpStream,
    messages: Receiver<NetworkMessage>,
    pings: u64,
}

impl Peer {
    /// Connects to the node with this P2P port, and completes the handshake and the negotiation of compact blocks. The
    /// node does not announce transactions to this peer.
    pub fn connect(port: u16) -> Self {
        Self::connect_with_clock(port, 0)
    }

    /// Like [`Self::connect`], but the peer's clock is `offset` seconds ahead of the machine's clock.
    pub fn connect_with_clock(port: u16, offset: i64) -> Self {
        Self::connect_as(port, offset, false)
    }

    /// Like [`Self::connect`], but the node announces transactions to this peer.
    pub fn connect_for_transactions(port: u16) -> Self {
        Self::connect_as(port, 0, true)
    }

    /// Connects to the node with this P2P port. The peer's clock is `offset` seconds ahead. If `relay` is true, the
    /// node announces transactions to the peer.
    fn connect_as(port: u16, offset: i64, relay: bool) -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let stream = TcpStream::connect(address).unwrap();
        let (sender, messages) = channel();
        let reader = stream.try_clone().unwrap();
        std::thread::spawn(move || read(reader, &sender));
        let mut peer = Peer { stream, messages, pings: 0 };
        let services = ServiceFlags::NETWORK | ServiceFlags::WITNESS;
        let address = Address::new(&address, services);
        let mut version = VersionMessage::new(
            services,
            i64::from(unix_time()) + offset,
            address.clone(),
            address,
            rand::random(),
            "/scripted/".into(),
            0,
        );
        version.version = 70_016;
        version.relay = relay;
        peer.send(NetworkMessage::Version(version));
        peer.receive("verack", |message| matches!(message, NetworkMessage::Verack).then_some(()));
        peer.send(NetworkMessage::Verack);
        peer.send(NetworkMessage::SendCmpct(SendCmpct { send_compact: false, version: 2 }));
        peer.wait_until_handled();
        peer
    }

    /// Sends a P2P message to the node.
    pub fn send(&mut self, message: NetworkMessage) {
        self.stream.write_all(&serialize(&RawNetworkMessage::new(Magic::REGTEST, message))).unwrap();
    }

    /// Sends a block as a compact block, with the transactions at the positions `prefill` included.
    pub fn send_compact_block(&mut self, block: &Block, prefill: &[usize]) {
        let compact_block = HeaderAndShortIds::from_block(block, rand::random(), 2, prefill).unwrap();
        self.send(NetworkMessage::CmpctBlock(CmpctBlock { compact_block }));
    }

    /// Returns the value that `wanted` returns for the first matching message from the node, and discards the messages
    /// before it. Panics if no message arrives for 30 seconds.
    pub fn receive<T>(&mut self, what: &str, mut wanted: impl FnMut(NetworkMessage) -> Option<T>) -> T {
        loop {
            let message = self.messages.recv_timeout(Duration::from_secs(30));
            let message = message.unwrap_or_else(|error| panic!("{what} does not come: {error}"));
            if let Some(found) = wanted(message) {
                return found;
            }
        }
    }

    /// Waits until the node has handled all messages that this peer has sent. The peer sends a ping, and discards the
    /// messages that arrive before the pong.
    pub fn wait_until_handled(&mut self) {
        self.pings += 1;
        let ping = self.pings;
        self.send(NetworkMessage::Ping(ping));
        self.receive("pong", |message| (message == NetworkMessage::Pong(ping)).then_some(()));
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

/// Reads messages from the node until the connection is closed, and sends them to the channel `messages`.
fn read(mut stream: TcpStream, messages: &Sender<NetworkMessage>) {
    const HEADER: usize = 24;
    loop {
        let mut message = vec![0; HEADER];
        if stream.read_exact(&mut message).is_err() {
            return;
        }
        let length = u32::from_le_bytes(message[16..20].try_into().unwrap());
        message.resize(HEADER + length as usize, 0);
        if stream.read_exact(&mut message[HEADER..]).is_err() {
            return;
        }
        if let Ok(message) = deserialize::<RawNetworkMessage>(&message)
            && messages.send(message.payload().clone()).is_err()
        {
            return;
        }
    }
}

/// The current time in seconds since the Unix epoch.
pub fn unix_time() -> u32 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as u32
}

/// Builds and mines a regtest block on `previous` with these transactions, which have no witnesses. The coinbase pays
/// `reward`.
pub fn block_on(previous: &Header, height: i64, time: u32, reward: Amount, txs: &[Transaction]) -> Block {
    let coinbase = Transaction {
        version: transaction::Version::TWO,
        lock_time: absolute::LockTime::ZERO,
        input: vec![TxIn {
            previous_output: OutPoint::null(),
            script_sig: Builder::new().push_int(height).push_slice([0; 4]).into_script(),
            sequence: Sequence::MAX,
            witness: Witness::new(),
        }],
        output: vec![TxOut { value: reward, script_pubkey: ScriptBuf::from_hex("51").unwrap() }],
    };
    let mut block = Block {
        header: Header {
            version: block::Version::from_consensus(0x2000_0000),
            prev_blockhash: previous.block_hash(),
            merkle_root: TxMerkleNode::all_zeros(),
            time,
            bits: CompactTarget::from_consensus(0x207f_ffff),
            nonce: 0,
        },
        txdata: std::iter::once(coinbase).chain(txs.iter().cloned()).collect(),
    };
    block.header.merkle_root = block.compute_merkle_root().unwrap();
    while block.header.validate_pow(block.header.target()).is_err() {
        block.header.nonce += 1;
    }
    block
}
