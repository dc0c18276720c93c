# The ordinals are those in src/ipc/capnp/tracing.capnp of github.com/willcl-ark/bitcoin, branch pr/trace, commit
# 6cbf222c6ada.
@0xfcbbd3f49874128e;

using Proxy = import "proxy.capnp";
using Handler = import "handler.capnp".Handler;

interface Tracing {
    traceUtxoCache @0 (context :Proxy.Context, callback :UtxoCacheTrace) -> (result :Handler);
}

interface UtxoCacheTrace {
    destroy @0 (context :Proxy.Context) -> ();
    add @1 (utxoInfo :UtxoInfo) -> ();
    spend @2 (utxoInfo :UtxoInfo) -> ();
    uncache @3 (utxoInfo :UtxoInfo) -> ();
}

struct UtxoInfo {
    outpointHash @0 :Data;
    outpointN @1 :UInt32;
    height @2 :UInt32;
    value @3 :Int64;        # satoshis
    isCoinbase @4 :Bool;
}
