//! How many frames have which idle age: exact for young ages, in classes of growing width for old ones.
//!
//! Promises: every age from 0 to [`Generation::MAX_AGE`] is in exactly one class; sums over whole classes are exact. Must never: lose a frame;
//! what is older than the last class counts in it.

use crate::frame::word::Generation;

/// Ages below this are told apart exactly.
pub const EXACT_AGES: u32 = 64;
/// log2 of the classes per doubling of the age above that.
const STEP_BITS: u32 = 2;
const EXACT_BITS: u32 = EXACT_AGES.ilog2();
/// Number of classes.
pub const AGE_CLASSES: usize = class_of(Generation::MAX_AGE) + 1;

/// The class of an age.
pub const fn class_of(age: u32) -> usize {
    let age = if age > Generation::MAX_AGE { Generation::MAX_AGE } else { age };
    if age < EXACT_AGES {
        return age as usize;
    }
    let octave = age.ilog2();
    let step = age >> (octave - STEP_BITS) & ((1 << STEP_BITS) - 1);
    (EXACT_AGES + ((octave - EXACT_BITS) << STEP_BITS) + step) as usize
}

/// The youngest age of each class.
const LEAST: [u32; AGE_CLASSES] = {
    let mut least = [0; AGE_CLASSES];
    let mut age = Generation::MAX_AGE + 1;
    // Downwards, so that the youngest age of a class is written last.
    while age > 0 {
        age -= 1;
        least[class_of(age)] = age;
    }
    least
};

/// The youngest age of a class.
pub const fn least_age(class: usize) -> u32 {
    LEAST[class]
}

/// Frames by age class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgeHistogram {
    frames: [u64; AGE_CLASSES],
}

impl Default for AgeHistogram {
    fn default() -> Self {
        Self { frames: [0; AGE_CLASSES] }
    }
}

impl AgeHistogram {
    /// Counts `frames` more of this age.
    pub fn add(&mut self, age: u32, frames: u64) {
        self.frames[class_of(age)] += frames;
    }

    /// Counts what another one has counted.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.frames.iter_mut().zip(&other.frames) {
            *mine += theirs;
        }
    }

    /// All frames.
    pub fn total(&self) -> u64 {
        self.frames.iter().sum()
    }

    /// Frames of a class.
    pub fn of_class(&self, class: usize) -> u64 {
        self.frames[class]
    }

    /// Frames that were seen less than `scans` scans ago, the one just finished being the first. Exact up to [`EXACT_AGES`], beyond that
    /// rounded up to the end of a class.
    pub fn younger_than(&self, scans: u32) -> u64 {
        let whole = self.frames.iter().enumerate().filter(|(class, _)| least_age(*class) < scans);
        whole.map(|(_, frames)| frames).sum()
    }

    /// Of each class up to the last one that is not empty: its youngest age, and the frames that are at least that old. The first one counts
    /// all frames.
    pub fn at_least(&self) -> Vec<(u32, u64)> {
        let last = self.frames.iter().rposition(|frames| *frames > 0).unwrap_or(0);
        let mut older = 0;
        let mut curve: Vec<(u32, u64)> = (0..=last)
            .rev()
            .map(|class| {
                older += self.frames[class];
                (least_age(class), older)
            })
            .collect();
        curve.reverse();
        curve
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn classes_are_exact_then_a_quarter_of_a_doubling_wide() {
        assert!((0..EXACT_AGES).all(|age| class_of(age) == age as usize));
        let starts: Vec<u32> = (class_of(EXACT_AGES)..AGE_CLASSES).map(least_age).collect();
        assert_eq!(starts[..9], [64, 80, 96, 112, 128, 160, 192, 224, 256]);
        assert_eq!((AGE_CLASSES, starts.last()), (92, Some(&7168)));
        assert_eq!(class_of(u32::MAX), AGE_CLASSES - 1);
    }

    #[test]
    fn classes_ascend_without_a_gap() {
        for age in 1..=Generation::MAX_AGE {
            let (before, class) = (class_of(age - 1), class_of(age));
            assert!(class == before || class == before + 1, "age {age}");
            assert_eq!(class != before, least_age(class) == age, "age {age}");
        }
    }

    proptest! {
        #[test]
        fn sums_are_those_of_a_plain_list(ages in prop::collection::vec(0..=Generation::MAX_AGE, 0..200), scans in 0..=EXACT_AGES) {
            let mut histogram = AgeHistogram::default();
            ages.iter().for_each(|age| histogram.add(*age, 1));
            let count = |wanted: &dyn Fn(u32) -> bool| ages.iter().filter(|age| wanted(**age)).count() as u64;
            prop_assert_eq!(histogram.total(), ages.len() as u64);
            prop_assert_eq!(histogram.younger_than(scans), count(&|age| age < scans));
            for (least, frames) in histogram.at_least() {
                prop_assert_eq!(frames, count(&|age| age >= least), "at least {}", least);
            }
            let points = histogram.at_least();
            let oldest = ages.iter().copied().max().unwrap_or(0);
            prop_assert_eq!(points.last().map(|point| point.0), Some(least_age(class_of(oldest))));
            let mut twice = histogram.clone();
            twice.merge(&histogram);
            prop_assert_eq!(twice.total(), 2 * histogram.total());
        }
    }
}
