# The ordinals are those in src/ipc/capnp/rpc.capnp of Bitcoin Core at 02306cc915ca (Core 32).
@0x9c3505dc45e146ac;

using Proxy = import "proxy.capnp";

interface Rpc {
    executeRpc @0 (context :Proxy.Context, request :Text, uri :Text, user :Text) -> (result :Text);
    # `request` and `result` are JSON-RPC 2.0 objects
}
