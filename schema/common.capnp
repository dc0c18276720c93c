@0xcd2c6232cb484a28;

struct BlockRef {
    hash @0 :Data;      # 32 bytes, little-endian
    height @1 :Int32;
}

struct PairUInt64(Key) {
    key @0 :Key;
    value @1 :UInt64;
}
