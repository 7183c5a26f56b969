//! One bit per frame: marked idle, and not found accessed since.
//!
//! Must never: know what a frame is or how accesses are seen.

use std::ops::Range;

use crate::units::FrameIndex;

/// See the module.
#[derive(Debug)]
pub struct IdleBits {
    words: Vec<u64>,
}

impl IdleBits {
    /// No bit set.
    pub fn new(frames: u32) -> Self {
        Self { words: vec![0; frames.div_ceil(64) as usize] }
    }

    /// Whether a frame's bit is set.
    pub fn get(&self, frame: FrameIndex) -> bool {
        self.words[frame.get() / 64] >> (frame.0 % 64) & 1 == 1
    }

    /// Sets a frame's bit.
    pub fn set(&mut self, frame: FrameIndex) {
        self.words[frame.get() / 64] |= 1 << (frame.0 % 64);
    }

    /// Clears the bits of a run of frames.
    pub fn clear(&mut self, frames: Range<u32>) {
        let (first, last) = (frames.start / 64, frames.end.div_ceil(64));
        for word in first..last {
            let from = frames.start.saturating_sub(word * 64).min(64);
            let to = (frames.end - word * 64).min(64);
            // A shift by 64 bits is none at all, so the whole word is spelled out.
            let up_to = if to == 64 { u64::MAX } else { (1 << to) - 1 };
            self.words[word as usize] &= !(up_to & !((1 << from) - 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clearing_a_run_clears_it_and_nothing_else() {
        for run in [0..1, 0..64, 5..64, 63..65, 1..199, 64..128, 100..100, 0..200] {
            let mut bits = IdleBits::new(200);
            (0..200).for_each(|frame| bits.set(FrameIndex(frame)));
            bits.clear(run.clone());
            for frame in 0..200 {
                assert_eq!(bits.get(FrameIndex(frame)), !run.contains(&frame), "{frame} of {run:?}");
            }
        }
    }
}
