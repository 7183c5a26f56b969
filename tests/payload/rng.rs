//! Cheap random numbers for workloads.
//!
//! Promises: the same sequence for the same seed. Must never: be relied upon to be unpredictable.

use super::pattern;

/// A xorshift64* generator.
pub struct Rng {
    state: u64,
}

impl Rng {
    /// Starts from a seed; any value will do.
    pub fn new(seed: u64) -> Self {
        Self { state: pattern::mix(seed) | 1 }
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `limit`, which is not 0 and below 2^32.
    pub fn below(&mut self, limit: u64) -> u64 {
        ((self.draw() >> 32) * limit) >> 32
    }
}
