//! Trackers and what guest memory is made of, as a client sees them.
//!
//! Promises: plain data. Must never: hold locks or references into live structures.

use serde::{Deserialize, Serialize};

/// How accesses are seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum TrackerKind {
    /// Page tables dropped, data kept; a page seen mapped again was accessed.
    #[default]
    Unmap,
    /// The host kernel's idle page bitmap, which reads the processor's accessed bits.
    PageIdle,
    /// The hypervisor's dirty log: writes only.
    DirtyLog,
}

impl TrackerKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Unmap, Self::PageIdle, Self::DirtyLog];

    /// Its name, as in the API and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unmap => "unmap",
            Self::PageIdle => "page_idle",
            Self::DirtyLog => "dirty_log",
        }
    }
}

/// Which tracker a client wants: one of them, or the best one this host has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum TrackerChoice {
    /// The best one this host has.
    #[default]
    Auto,
    /// [`TrackerKind::Unmap`].
    Unmap,
    /// [`TrackerKind::PageIdle`].
    PageIdle,
    /// [`TrackerKind::DirtyLog`].
    DirtyLog,
}

impl TrackerChoice {
    /// The one that was named; `None` for auto.
    pub const fn named(self) -> Option<TrackerKind> {
        match self {
            Self::Auto => None,
            Self::Unmap => Some(TrackerKind::Unmap),
            Self::PageIdle => Some(TrackerKind::PageIdle),
            Self::DirtyLog => Some(TrackerKind::DirtyLog),
        }
    }
}

impl From<TrackerKind> for TrackerChoice {
    fn from(kind: TrackerKind) -> Self {
        match kind {
            TrackerKind::Unmap => Self::Unmap,
            TrackerKind::PageIdle => Self::PageIdle,
            TrackerKind::DirtyLog => Self::DirtyLog,
        }
    }
}

/// The tracker in use, and why this one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TrackerInfo {
    /// What was asked for.
    pub wanted: TrackerChoice,
    /// What is in use.
    pub tracker: TrackerKind,
    /// Why, in a sentence.
    pub reason: String,
    /// `accesses` (reads and writes) or `writes`.
    pub sees: String,
    /// Times the tracker was changed while the guest ran.
    pub switches: u64,
    /// Every tracker, whether this host has it, and what is missing if not.
    pub trackers: Vec<TrackerOffer>,
}

/// Whether this host has a tracker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TrackerOffer {
    /// Which.
    pub tracker: TrackerKind,
    /// Whether it can be used here.
    pub usable: bool,
    /// What it is good for here, or what is missing.
    pub note: String,
}

/// What backs guest memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum HugePages {
    /// Pages of 4 KiB.
    #[default]
    #[serde(rename = "off")]
    Off,
    /// Transparent huge pages: 2 MiB where the kernel has them and all of it is used, 4 KiB elsewhere.
    #[serde(rename = "thp")]
    Transparent,
    /// Pages of 2 MiB from the host's pool (hugetlbfs); each leaves and comes back as a whole.
    #[serde(rename = "2M")]
    Hugetlb2M,
}
/// Memory with transparent huge pages, in pieces of 2 MiB or more (see `docs/tracking.md`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PieceCounts {
    /// Pieces that may be made of huge pages and are kept as wholes.
    pub whole: u64,
    /// Pieces made of 4 KiB pages.
    pub split: u64,
    /// Times a piece was split.
    pub splits: u64,
    /// Times a piece was collapsed into huge pages.
    pub collapses: u64,
    /// Times the guest or the kernel was against it.
    pub refused: u64,
}
