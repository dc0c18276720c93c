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
}
