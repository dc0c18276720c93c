# The ordinals are those in src/ipc/capnp/handler.capnp of github.com/willcl-ark/bitcoin, branch pr/trace, commit
# 6cbf222c6ada.
@0xebd8f46e2f369076;

using Proxy = import "proxy.capnp";

interface Handler {
    unusedDestroy @0 ();
    disconnect @1 (context :Proxy.Context) -> ();
}
