# The ordinals are those in src/ipc/capnp/mining.capnp of Bitcoin Core at 02306cc915ca (Core 32) and 1b3d58f128a5 (Core
# 31). Comments that mention Core 30 describe the schema at d0f6d9953a15 (Core 30.0).
@0xc77d03df6a41b505;

using Proxy = import "proxy.capnp";
using Common = import "common.capnp";

const maxDouble :Float64 = 1.7976931348623157e308;

interface Mining {
    unusedIsTestChain @0 ();
    isInitialBlockDownload @1 (context :Proxy.Context) -> (result :Bool);
    getTip @2 (context :Proxy.Context) -> (result :Common.BlockRef, hasResult :Bool);
    waitTipChanged @3 (context :Proxy.Context, currentTip :Data, timeout :Float64 = .maxDouble) -> (result :Common.BlockRef);
    # `timeout` is in milliseconds. Core 30 has no default value for `timeout`, so the same timeout has a different
    # encoding in Core 30. The node returns no result only if it is shutting down.
    createNewBlock @4 (context :Proxy.Context, options :BlockCreateOptions, cooldown :Bool = true) -> (result :BlockTemplate);
    # The parameters have this encoding in Core 31 and later. The node returns no result only if it is shutting down.
}

struct CreateNewBlockCore30 {
    # The parameters of createNewBlock in Core 30. These parameters contain no context, and the call therefore runs on
    # the node's event loop thread, which all connections share.
    options @0 :BlockCreateOptions;
}

struct BlockCreateOptions {
    # This schema declares no default values, so the exporter sets each field to the value that is sent on the wire.
    # Core 31 declares the default values true, 8000 and 400, which Cap'n Proto encodes as zero. Core 30 declares no
    # default values.
    useMempool @0 :Bool;
    blockReservedWeight @1 :UInt64;
    coinbaseOutputMaxAdditionalSigops @2 :UInt64;
}

interface BlockTemplate {
    # The node keeps the template's transactions in memory until `destroy` is called or the capability is released.
    destroy @0 (context :Proxy.Context) -> ();
    unusedGetBlockHeader @1 ();
    getBlock @2 (context :Proxy.Context) -> (result :Data);
    getTxFees @3 (context :Proxy.Context) -> (result :List(Int64));
    getTxSigops @4 (context :Proxy.Context) -> (result :List(Int64));
    # getTxFees and getTxSigops omit the coinbase. The methods with higher ordinals differ between Core 30 and 31, and
    # the exporter does not call them.
}
