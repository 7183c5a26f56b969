//! Refaults as a client sees them: by distance in bytes, and by vCPU.
//!
//! Promises: buckets are of one width, without gaps, up to the last that is not empty; the sum of all is the number of refaults. Must never:
//! claim to know a distance beyond twice the guest's memory (see [`crate::refault`]).

use serde::{Deserialize, Serialize};

use crate::refault::Refaults;

/// Refaults by distance and by vCPU, since the tiers were made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RefaultReport {
    /// All of guest memory.
    pub guest_bytes: u64,
    /// Width of a step of distance, a 32nd of guest memory. Distances of twice guest memory and more appear shorter by a multiple of that.
    pub step_bytes: u64,
    /// Guest memory that has left so far, again and again.
    pub left_bytes: u64,
    /// Faults on pages that had left.
    pub refaults: u64,
    /// By rising distance, up to the largest that occurred.
    pub distances: Vec<RefaultDistance>,
    /// By vCPU.
    pub vcpus: Vec<VcpuFaults>,
}

/// Refaults of about one distance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RefaultDistance {
    /// Guest memory that left between the page's leaving and its coming back, give or take a step. With so much more memory the page need not
    /// have left.
    pub distance_bytes: u64,
    /// How many.
    pub refaults: u64,
}

/// What one vCPU did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VcpuFaults {
    /// Which.
    pub vcpu: u32,
    /// Its faults that brought a page back from a tier.
    pub major_faults: u64,
    /// Pages that it was seen writing, where the dirty log tells vCPUs apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written_pages: Option<u64>,
}

impl RefaultReport {
    /// From what was counted: refaults in frames of `frame_bytes`, faults and written pages by vCPU.
    pub fn new(
        refaults: &Refaults,
        frame_bytes: u64,
        guest_bytes: u64,
        major_faults: &[u64],
        written_pages: &[u64],
    ) -> Self {
        let step_bytes = refaults.frames_per_step * frame_bytes;
        let used = refaults.by_distance.iter().rposition(|count| *count > 0).map_or(0, |last| last + 1);
        let distance =
            |(step, refaults): (u64, &u64)| RefaultDistance { distance_bytes: step * step_bytes, refaults: *refaults };
        let vcpu = |(vcpu, number): (u32, usize)| VcpuFaults {
            vcpu,
            major_faults: major_faults.get(number).copied().unwrap_or(0),
            written_pages: written_pages.get(number).copied(),
        };
        Self {
            guest_bytes,
            step_bytes,
            left_bytes: refaults.left.saturating_mul(frame_bytes),
            refaults: refaults.by_distance.iter().sum(),
            distances: (0..).zip(&refaults.by_distance[..used]).map(distance).collect(),
            vcpus: (0..).zip(0..major_faults.len().max(written_pages.len())).map(vcpu).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::refault::DISTANCES;

    fn report(counts: &[(usize, u64)], major_faults: &[u64], written_pages: &[u64]) -> RefaultReport {
        let mut by_distance = [0; DISTANCES];
        counts.iter().for_each(|(distance, count)| by_distance[*distance] = *count);
        let refaults = Refaults { frames_per_step: 8, left: 100, by_distance };
        RefaultReport::new(&refaults, 4096, 1 << 20, major_faults, written_pages)
    }

    #[test]
    fn distances_are_bytes_and_end_with_the_largest_that_occurred() {
        let report = report(&[(1, 5), (3, 2)], &[4, 3], &[]);
        let counts: Vec<_> = report.distances.iter().map(|d| (d.distance_bytes, d.refaults)).collect();
        assert_eq!(counts, [(0, 0), (32 << 10, 5), (64 << 10, 0), (96 << 10, 2)]);
        assert_eq!((report.refaults, report.step_bytes, report.left_bytes), (7, 32 << 10, 409_600));
    }

    #[test]
    fn no_refaults_are_no_distances() {
        let report = report(&[], &[], &[]);
        assert!(report.distances.is_empty() && report.vcpus.is_empty());
    }

    #[test]
    fn vcpus_that_only_one_source_knows_are_there_too() {
        let vcpus = |major: &[u64], written: &[u64]| {
            report(&[], major, written)
                .vcpus
                .iter()
                .map(|v| (v.vcpu, v.major_faults, v.written_pages))
                .collect::<Vec<_>>()
        };
        assert_eq!(vcpus(&[4], &[7, 8]), [(0, 4, Some(7)), (1, 0, Some(8))]);
        assert_eq!(vcpus(&[4], &[]), [(0, 4, None)]);
    }
}
