# Ordinals: src/ipc/capnp/mining.capnp of Bitcoin Core at 02306cc915ca (Core 32) and 1b3d58f128a5 (Core 31); for Core 30, where noted,
# at d0f6d9953a15 (Core 30.0).
@0xc77d03df6a41b505;

using Proxy = import "proxy.capnp";
using Common = import "common.capnp";

const maxDouble :Float64 = 1.7976931348623157e308;

interface Mining {
    unusedIsTestChain @0 ();
    isInitialBlockDownload @1 (context :Proxy.Context) -> (result :Bool);
    getTip @2 (context :Proxy.Context) -> (result :Common.BlockRef, hasResult :Bool);
    waitTipChanged @3 (context :Proxy.Context, currentTip :Data, timeout :Float64 = .maxDouble) -> (result :Common.BlockRef);
    # Timeout in milliseconds. Core 30 has no default value for it, which makes the encoding another one. No result means that the node is shutting down, and only that
    createNewBlock @4 (context :Proxy.Context, options :BlockCreateOptions, cooldown :Bool = true) -> (result :BlockTemplate);
    # Of Core 31 and later. No result means that the node is shutting down
}

struct CreateNewBlockCore30 {
    # The parameters of Core 30's createNewBlock: without a context it runs on the thread that all connections share.
    options @0 :BlockCreateOptions;
}

struct BlockCreateOptions {
    # As they are on the wire: Core 31 has default values, true, 8000 and 400, so that zeros mean those there. Core 30 has none.
    useMempool @0 :Bool;
    blockReservedWeight @1 :UInt64;
    coinbaseOutputMaxAdditionalSigops @2 :UInt64;
}

interface BlockTemplate {
    # The node keeps the template's transactions in memory until it is destroyed or released.
    destroy @0 (context :Proxy.Context) -> ();
    unusedGetBlockHeader @1 ();
    getBlock @2 (context :Proxy.Context) -> (result :Data);
    getTxFees @3 (context :Proxy.Context) -> (result :List(Int64));
    getTxSigops @4 (context :Proxy.Context) -> (result :List(Int64));
    # Both without the coinbase. What follows differs between Core 30 and 31, and is not called
}
