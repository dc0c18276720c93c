# The ordinals are those in src/ipc/capnp/chain.capnp of github.com/willcl-ark/bitcoin, branch pr/trace, commit
# 6cbf222c6ada. Other public branches of Bitcoin Core have other ordinals for this interface.
@0x94f21a4864bd2c65;

using Proxy = import "proxy.capnp";
using Handler = import "handler.capnp".Handler;

interface Chain {
    unused0 @0 ();
    getHeight @1 (context :Proxy.Context) -> (result :Int32, hasResult :Bool);
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
    unused18 @18 ();
    unused19 @19 ();
    unused20 @20 ();
    unused21 @21 ();
    unused22 @22 ();
    unused23 @23 ();
    unused24 @24 ();
    unused25 @25 ();
    unused26 @26 ();
    relayMinFee @27 (context :Proxy.Context) -> (result :Data);
    unused28 @28 ();
    unused29 @29 ();
    havePruned @30 (context :Proxy.Context) -> (result :Bool);
    getPruneHeight @31 (context :Proxy.Context) -> (result :Int32, hasResult :Bool);
    unused32 @32 ();
    isInitialBlockDownload @33 (context :Proxy.Context) -> (result :Bool);
    shutdownRequested @34 (context :Proxy.Context) -> (result :Bool);
    unused35 @35 ();
    unused36 @36 ();
    unused37 @37 ();
    unused38 @38 ();
    handleNotifications @39 (context :Proxy.Context, notifications :ChainNotifications) -> (result :Handler);
}

interface ChainNotifications {
    destroy @0 (context :Proxy.Context) -> ();
    transactionAddedToMempool @1 (context :Proxy.Context, tx :Data) -> ();
    transactionRemovedFromMempool @2 (context :Proxy.Context, tx :Data, reason :Int32) -> ();
    blockConnected @3 (context :Proxy.Context, role :ChainstateRole, block :BlockInfo) -> ();
    blockDisconnected @4 (context :Proxy.Context, block :BlockInfo) -> ();
    updatedBlockTip @5 (context :Proxy.Context) -> ();
    chainStateFlushed @6 (context :Proxy.Context, role :ChainstateRole, locator :Data) -> ();
}

struct BlockInfo {
    hash @0 :Data;              # 32 bytes, little-endian
    prevHash @1 :Data;
    height @2 :Int32 = -1;
    fileNumber @3 :Int32 = -1;
    dataPos @4 :UInt32;
    data @5 :Data;              # the whole block, serialized with witnesses
    undoData @6 :Data;
    chainTimeMax @7 :UInt32;
}

struct ChainstateRole {
    validated @0 :Bool;
    historical @1 :Bool;        # the background chainstate of an assumeutxo node
}
