//! What pages hold: seeded contents, and versioned contents that can be checked word by word while their owner writes.
//!
//! Promises: pure functions of their arguments, the same in the image and on the host. Must never: touch memory.

/// 64-bit words in a page.
pub const WORDS: u64 = 512;

/// Kinds of page that `FILL` makes: a mask of these.
pub mod kind {
    /// Nothing but zeros.
    pub const ZERO: u64 = 1;
    /// One word, repeated.
    pub const SAME: u64 = 2;
    /// Mostly small numbers.
    pub const COMPRESSIBLE: u64 = 4;
    /// No two words alike.
    pub const RANDOM: u64 = 8;
    /// All of them.
    pub const ALL: u64 = 15;
}

/// A number's well-mixed image (splitmix64's finaliser).
pub const fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

/// The kind of the page at guest frame `frame`, out of the mask `kinds`; [`kind::RANDOM`] when the mask is empty.
pub const fn kind_of(seed: u64, frame: u64, kinds: u64) -> u64 {
    let kinds = kinds & kind::ALL;
    if kinds == 0 {
        return kind::RANDOM;
    }
    let mut bit = mix(seed ^ mix(frame)) & 3;
    while kinds & 1 << bit == 0 {
        bit = (bit + 1) & 3;
    }
    1 << bit
}

/// Word `index` of the page at `frame`, which is of this kind.
pub const fn word(seed: u64, frame: u64, kind: u64, index: u64) -> u64 {
    let base = mix(seed ^ frame.wrapping_mul(0xd6e8_feb8_6659_fd93));
    match kind {
        kind::ZERO => 0,
        kind::SAME => base | 1,
        kind::COMPRESSIBLE if !index.is_multiple_of(16) => base.wrapping_add(index) & 0x1f,
        _ => mix(base ^ index),
    }
}

/// Every eighth version of a page is all zeros, so that zero pages leave and come back too.
const ZERO_VERSION_MASK: u64 = 7;

/// How far one version's words are from the next one's. Odd, so that it has an inverse modulo 2^64.
const VERSION_STEP: u64 = 0x2545_f491_4f6c_dd1d;

/// The inverse of [`VERSION_STEP`] modulo 2^64: each round of Newton's method doubles the valid bits.
const VERSION_STEP_INVERSE: u64 = {
    let mut inverse: u64 = VERSION_STEP;
    let mut round = 0;
    while round < 5 {
        inverse = inverse.wrapping_mul(2u64.wrapping_sub(VERSION_STEP.wrapping_mul(inverse)));
        round += 1;
    }
    assert!(inverse.wrapping_mul(VERSION_STEP) == 1);
    inverse
};

/// Whether this version of a page is all zeros. The version that fresh memory has, 0, is.
pub const fn is_zero_version(version: u64) -> bool {
    version & ZERO_VERSION_MASK == 0
}

/// What the versions of a page's words are counted from.
pub const fn version_base(seed: u64, frame: u64) -> u64 {
    mix(seed ^ mix(frame))
}

/// Word `index` of a page at `version`; `base` is the page's [`version_base`].
pub const fn versioned_word(base: u64, version: u64, index: u64) -> u64 {
    if is_zero_version(version) {
        return 0;
    }
    base.wrapping_add(index.wrapping_mul(0xa076_1d64_78bd_642f)).wrapping_add(version.wrapping_mul(VERSION_STEP))
}

/// Whether a word is one that its page held at some version from `least` to `most`.
pub const fn word_is_between(base: u64, least: u64, most: u64, index: u64, found: u64) -> bool {
    if found == 0 {
        // Zero is right when a zero version is among them.
        let next_zero = (least + ZERO_VERSION_MASK) & !ZERO_VERSION_MASK;
        return next_zero <= most;
    }
    let distance = found.wrapping_sub(base).wrapping_sub(index.wrapping_mul(0xa076_1d64_78bd_642f));
    let version = distance.wrapping_mul(VERSION_STEP_INVERSE);
    least <= version && version <= most && !is_zero_version(version)
}
