//! Frames by idle age, as a client sees them.
//!
//! Promises: every frame that is in memory or in a tier counts in exactly one row; rows without a frame are left out. Must never: tell ages
//! apart that were not told apart when they were counted.

use serde::{Deserialize, Serialize};

use crate::frame::word::Generation;
use crate::insight::ages::{AGE_CLASSES, least_age};
use crate::insight::census::{Census, RegionCensus};

/// Frames by idle age.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AgeReport {
    /// Scans finished since the tiers were made; ages are counted in them.
    pub scans: u64,
    /// Bytes of a frame.
    pub frame_bytes: u64,
    /// By rising age.
    pub ages: Vec<AgeRow>,
}

/// Frames of one age, or of a class of old ages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AgeRow {
    /// Idle for at least so many scans in a row; 0 is accessed in the last one.
    pub min_scans: u32,
    /// And for at most so many.
    pub max_scans: u32,
    /// Frames in memory.
    pub resident_frames: u64,
    /// Frames in a tier, by the scans since they were last seen used.
    pub out_frames: u64,
}

impl AgeReport {
    /// The ages of a census; `scans` were finished until then.
    pub fn new(census: &Census, scans: u64) -> Self {
        let sum = |of: &dyn Fn(&RegionCensus) -> u64| census.regions.iter().map(of).sum();
        let row = |class: usize| AgeRow {
            min_scans: least_age(class),
            max_scans: if class + 1 < AGE_CLASSES { least_age(class + 1) - 1 } else { Generation::MAX_AGE },
            resident_frames: sum(&|region| region.resident.of_class(class)),
            out_frames: sum(&|region| region.out.of_class(class)),
        };
        let ages = (0..AGE_CLASSES).map(row).filter(|row| row.resident_frames + row.out_frames > 0).collect();
        Self { scans, frame_bytes: census.frame_bytes, ages }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::insight::ages::AgeHistogram;

    #[test]
    fn rows_have_their_bounds_and_empty_ones_are_left_out() {
        let mut region =
            RegionCensus { start: 0, frames: 9, resident: AgeHistogram::default(), out: AgeHistogram::default() };
        region.resident.add(0, 3);
        region.resident.add(70, 2);
        region.out.add(79, 1);
        region.out.add(Generation::MAX_AGE, 4);
        let census = Census {
            finished: Generation(0),
            frame_bytes: 4096,
            regions: vec![region.clone(), region],
            touched_by_bucket: Vec::new(),
        };
        let rows: Vec<_> = AgeReport::new(&census, 5)
            .ages
            .iter()
            .map(|row| (row.min_scans, row.max_scans, row.resident_frames, row.out_frames))
            .collect();
        assert_eq!(rows, [(0, 0, 6, 0), (64, 79, 4, 2), (7168, 8191, 0, 8)]);
    }
}
