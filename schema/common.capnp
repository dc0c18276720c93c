# The ordinals are those in src/ipc/capnp/common.capnp of github.com/willcl-ark/bitcoin, branch pr/trace, commit
# 6cbf222c6ada. BlockRef is the same in Bitcoin Core at 02306cc915ca (Core 32) and 1b3d58f128a5 (Core 31).
@0xcd2c6232cb484a28;

struct BlockRef {
    hash @0 :Data;      # 32 bytes, little-endian
    height @1 :Int32;
}

struct PairUInt64(Key) {
    key @0 :Key;
    value @1 :UInt64;
}
