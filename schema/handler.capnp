@0xebd8f46e2f369076;

using Proxy = import "proxy.capnp";

interface Handler {
    unusedDestroy @0 ();
    disconnect @1 (context :Proxy.Context) -> ();
}
