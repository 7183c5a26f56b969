//! The cold-memory curve: how many bytes were idle for at least n scans.
//!
//! Promises: the curve falls or stays as n grows; its first point is all memory that is resident, or out. Must never: interpolate; points stand
//! where ages are told apart (every age below 64, then four per doubling).

use serde::{Deserialize, Serialize};

use crate::insight::ages::AgeHistogram;
use crate::insight::census::{Census, RegionCensus};

/// The cold-memory curve of a guest and of each of its regions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ColdCurve {
    /// Scans finished since the tiers were made; ages are counted in them.
    pub scans: u64,
    /// Bytes of a frame, the unit in which ages are known.
    pub frame_bytes: u64,
    /// All of guest memory.
    pub total: CurveOf,
    /// The regions, by address.
    pub regions: Vec<CurveOf>,
}

/// The curve of one piece of guest memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CurveOf {
    /// Guest physical address of its first byte.
    pub start: u64,
    /// Its length in bytes, holes included.
    pub len: u64,
    /// Of it in memory.
    pub resident_bytes: u64,
    /// Of it in a tier, zero pages included.
    pub out_bytes: u64,
    /// Points by rising age, up to the oldest age that occurs.
    pub points: Vec<CurvePoint>,
}

/// One point of the curve.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CurvePoint {
    /// n: idle for at least so many scans in a row.
    pub min_idle_scans: u32,
    /// Bytes in memory that are so cold.
    pub resident_bytes: u64,
    /// Bytes in a tier that were last used so long ago.
    pub out_bytes: u64,
}

impl ColdCurve {
    /// The curve of a census; `scans` were finished until then.
    pub fn new(census: &Census, scans: u64) -> Self {
        let bytes = census.frame_bytes;
        let of = |region: &RegionCensus| {
            let len = u64::from(region.frames) * bytes;
            CurveOf::new(region.start, len, bytes, &region.resident, &region.out)
        };
        let regions: Vec<CurveOf> = census.regions.iter().map(of).collect();
        let (mut resident, mut out) = (AgeHistogram::default(), AgeHistogram::default());
        for region in &census.regions {
            resident.merge(&region.resident);
            out.merge(&region.out);
        }
        let start = regions.first().map_or(0, |region| region.start);
        let end = regions.last().map_or(0, |region| region.start + region.len);
        Self { scans, frame_bytes: bytes, total: CurveOf::new(start, end - start, bytes, &resident, &out), regions }
    }
}

impl CurveOf {
    fn new(start: u64, len: u64, frame_bytes: u64, resident: &AgeHistogram, out: &AgeHistogram) -> Self {
        let (resident, out) = (resident.at_least(), out.at_least());
        let longer = if resident.len() >= out.len() { &resident } else { &out };
        let at = |curve: &[(u32, u64)], place: usize| curve.get(place).map_or(0, |point| point.1 * frame_bytes);
        let point = |(place, (least, _)): (usize, &(u32, u64))| CurvePoint {
            min_idle_scans: *least,
            resident_bytes: at(&resident, place),
            out_bytes: at(&out, place),
        };
        let points: Vec<CurvePoint> = longer.iter().enumerate().map(point).collect();
        Self { start, len, resident_bytes: at(&resident, 0), out_bytes: at(&out, 0), points }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::word::Generation;
    use proptest::prelude::*;

    fn region(start: u64, resident: &[u32], out: &[u32]) -> RegionCensus {
        let mut region =
            RegionCensus { start, frames: 100, resident: AgeHistogram::default(), out: AgeHistogram::default() };
        resident.iter().for_each(|age| region.resident.add(*age, 1));
        out.iter().for_each(|age| region.out.add(*age, 1));
        region
    }

    fn census(regions: Vec<RegionCensus>) -> Census {
        Census { finished: Generation(9), frame_bytes: 4096, regions, touched_by_bucket: Vec::new() }
    }

    #[test]
    fn a_curve_has_a_point_per_age_up_to_the_oldest_resident_or_out() {
        let curve = ColdCurve::new(&census(vec![region(0, &[0, 0, 1, 3], &[4])]), 9);
        let points: Vec<_> = curve
            .total
            .points
            .iter()
            .map(|p| (p.min_idle_scans, p.resident_bytes / 4096, p.out_bytes / 4096))
            .collect();
        assert_eq!(points, [(0, 4, 1), (1, 2, 1), (2, 1, 1), (3, 1, 1), (4, 0, 1)]);
        assert_eq!((curve.total.resident_bytes, curve.total.out_bytes, curve.total.len), (4 * 4096, 4096, 100 * 4096));
    }

    #[test]
    fn memory_that_nobody_touched_has_a_curve_of_nothing() {
        let curve = ColdCurve::new(&census(vec![region(0x1000, &[], &[])]), 0);
        assert_eq!(curve.total.points, [CurvePoint::default()]);
        assert_eq!((curve.total.start, curve.regions.len()), (0x1000, 1));
    }

    proptest! {
        #[test]
        fn curves_fall_and_regions_add_up(
            ages in prop::collection::vec((prop::collection::vec(0..=Generation::MAX_AGE, 0..40), prop::collection::vec(0..300_u32, 0..40)), 1..4),
        ) {
            let regions = (0_u64..).zip(&ages).map(|(n, (resident, out))| region(n << 30, resident, out)).collect();
            let curve = ColdCurve::new(&census(regions), 1);
            for piece in curve.regions.iter().chain([&curve.total]) {
                for pair in piece.points.windows(2) {
                    prop_assert!(pair[0].resident_bytes >= pair[1].resident_bytes && pair[0].out_bytes >= pair[1].out_bytes);
                    prop_assert!(pair[0].min_idle_scans < pair[1].min_idle_scans);
                }
            }
            for (place, point) in curve.total.points.iter().enumerate() {
                let sum: u64 = curve.regions.iter().filter_map(|r| r.points.get(place)).map(|p| p.resident_bytes).sum();
                prop_assert_eq!(sum, point.resident_bytes);
                let naive = ages.iter().flat_map(|(resident, _)| resident).filter(|age| **age >= point.min_idle_scans).count();
                prop_assert_eq!(point.resident_bytes, naive as u64 * 4096);
            }
        }
    }
}
