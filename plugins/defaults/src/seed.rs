//! A seed that anybody can compute again from the job's id.

/// FNV-1a over the id's text, mixed by the finisher of SplitMix64 and cut to 31 bits: every library takes it, also
/// those that want a signed 32-bit number (NumPy takes 0 to 2³²−1).
pub fn of_job(id: &str) -> u32 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in id.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    // The top 31 bits always fit.
    (hash >> 33) as u32
}
