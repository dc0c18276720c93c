# The bootstrap capability of a node, which creates the node's other interfaces.
#
# Ordinal 2 is makeMining on Core 30 and a stub that fails on later nodes. Ordinal 4 is makeRpc on Core 32 and makeChain
# on the pr/ipc branches. The schema therefore declares the result of ordinal 4 as AnyPointer, and the exporter calls a
# method on the result to detect which of the two interfaces the node returned.
#
# The ordinals are those in src/ipc/capnp/init.capnp of Bitcoin Core at d0f6d9953a15 (Core 30.0; makeMining @2),
# 1b3d58f128a5 (Core 31; makeMining @3) and 02306cc915ca (Core 32; makeRpc @4), and of github.com/willcl-ark/bitcoin,
# branch pr/trace, commit 6cbf222c6ada (the other methods).
@0xf2c5cfa319406aa6;

using Proxy = import "proxy.capnp";
using Mining = import "mining.capnp".Mining;
using Node = import "node.capnp".Node;
using Tracing = import "tracing.capnp".Tracing;

interface Init {
    construct @0 (threadMap :Proxy.ThreadMap) -> (threadMap :Proxy.ThreadMap);
    unusedMakeEcho @1 ();
    makeMiningCore30 @2 (context :Proxy.Context) -> (result :Mining);
    makeMining @3 (context :Proxy.Context) -> (result :Mining);
    makeRpcOrChain @4 (context :Proxy.Context) -> (result :AnyPointer);
    makeNode @5 (context :Proxy.Context) -> (result :Node);
    unusedMakeWalletLoader @6 ();
    makeTracing @7 (context :Proxy.Context) -> (result :Tracing);
}
