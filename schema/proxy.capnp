# Threads and call contexts: what libmultiprocess adds to every call.
#
# Ordinals: src/ipc/libmultiprocess/include/mp/proxy.capnp of Bitcoin Core at 02306cc915ca (Core 32) and 1b3d58f128a5
# (Core 31).
@0xcc316e3f71a040fb;

interface ThreadMap {
    makeThread @0 (name :Text) -> (result :Thread);
}

interface Thread {
    getName @0 () -> (result :Text);
}

struct Context {
    thread @0 :Thread;          # the thread of the callee that is to run this call
    callbackThread @1 :Thread;  # the thread of the caller that is to run callbacks of it
}
