# The ordinals are those in src/ipc/capnp/node.capnp of github.com/willcl-ark/bitcoin, branch pr/trace, commit
# 6cbf222c6ada. Other public branches of Bitcoin Core have other ordinals for this interface.
@0x92546c47dc734b2e;

using Proxy = import "proxy.capnp";
using Common = import "common.capnp";

interface Node {
    unused0 @0 ();
    unused1 @1 ();
    unused2 @2 ();
    unused3 @3 ();
    unused4 @4 ();
    unused5 @5 ();
    unused6 @6 ();
    unused7 @7 ();
    unused8 @8 ();
    unused9 @9 ();
    unused10 @10 ();
    unused11 @11 ();
    unused12 @12 ();
    unused13 @13 ();
    unused14 @14 ();
    unused15 @15 ();
    unused16 @16 ();
    unused17 @17 ();
    getNodeCount @18 (context :Proxy.Context, flags :Int32) -> (result :UInt64);  # flags: 1 inbound, 2 outbound, 3 both
    getNodesStats @19 (context :Proxy.Context) -> (stats :List(NodeStats), result :Bool);
    unused20 @20 ();
    unused21 @21 ();
    unused22 @22 ();
    unused23 @23 ();
    unused24 @24 ();
    unused25 @25 ();
    getTotalBytesRecv @26 (context :Proxy.Context) -> (result :Int64);
    getTotalBytesSent @27 (context :Proxy.Context) -> (result :Int64);
    getMempoolSize @28 (context :Proxy.Context) -> (result :UInt64);
    getMempoolDynamicUsage @29 (context :Proxy.Context) -> (result :UInt64);
    getMempoolMaxUsage @30 (context :Proxy.Context) -> (result :UInt64);
    getHeaderTip @31 (context :Proxy.Context) -> (height :Int32, blockTime :Int64, result :Bool);
    unused32 @32 ();
    unused33 @33 ();
    getBestBlockHash @34 (context :Proxy.Context) -> (result :Data);
    getLastBlockTime @35 (context :Proxy.Context) -> (result :Int64);
    getVerificationProgress @36 (context :Proxy.Context) -> (result :Float64);
    isInitialBlockDownload @37 (context :Proxy.Context) -> (result :Bool);
    unused38 @38 ();
    unused39 @39 ();
    unused40 @40 ();
    unused41 @41 ();
    executeRpc @42 (context :Proxy.Context, command :Text, params :Text, uri :Text) -> (error :Text, rpcError :Text, result :Text);
}

struct NodeStats {
    nodeid @0 :Int64;
    unused1 @1 :Int64;
    unused2 @2 :Int64;
    unused3 @3 :Int64;
    unused4 @4 :Int64;
    timeConnected @5 :Int64;    # Unix seconds
    addrName @6 :Text;          # address with port; for a peer from -addnode, the name in that option
    version @7 :Int32;
    cleanSubVer @8 :Text;       # user agent without control characters
    inbound @9 :Bool;
    bip152HighbandwidthTo @10 :Bool;
    bip152HighbandwidthFrom @11 :Bool;
    unused12 @12 :Int32;
    unused13 @13 :UInt64;
    sendBytesPerMsgType @14 :List(Common.PairUInt64(Text));
    unused15 @15 :UInt64;
    recvBytesPerMsgType @16 :List(Common.PairUInt64(Text));
    unused17 @17 :Int32;
    pingTime @18 :Int64;        # microseconds
    minPingTime @19 :Int64;     # microseconds; before the first pong, the maximum value of Int64
    unused20 @20 :Text;
    unused21 @21 :Data;
    unused22 @22 :Data;
    network @23 :Int32;
    mappedAs @24 :UInt32;       # 0 without -asmap, or if the map lacks the address
    connType @25 :Int32;
    transportType @26 :UInt8;
    unused27 @27 :Text;
    stateStats @28 :NodeStateStats;
}

struct NodeStateStats {
    syncHeight @0 :Int32;       # height of the best header that the peer is known to have; -1 if none is known
    unused1 @1 :Int32;
    unused2 @2 :Int32;
    pingWait @3 :Int64;         # microseconds since the last ping, while its pong is outstanding
    heightInFlight @4 :List(Int32);
    addressesProcessed @5 :UInt64;
    addressesRateLimited @6 :UInt64;
    addressRelayEnabled @7 :Bool;
    theirServices @8 :UInt64;   # bits of Core's ServiceFlags
    unused9 @9 :Int64;
    timeOffset @10 :Int64;      # seconds
}
