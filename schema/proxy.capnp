# Types of libmultiprocess, the library with which Bitcoin Core implements IPC: threads that run calls, and the context
# that most methods have as a parameter.
#
# The ordinals are those in src/ipc/libmultiprocess/include/mp/proxy.capnp of Bitcoin Core at 02306cc915ca (Core 32) and
# 1b3d58f128a5 (Core 31).
@0xcc316e3f71a040fb;

interface ThreadMap {
    makeThread @0 (name :Text) -> (result :Thread);
}

interface Thread {
    getName @0 () -> (result :Text);
}

struct Context {
    thread @0 :Thread;          # the callee's thread that runs this call
    callbackThread @1 :Thread;  # the caller's thread that runs the callbacks of this call
}
