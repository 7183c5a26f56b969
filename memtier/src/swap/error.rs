//! Why a swap area can't be switched on or off.

use std::io;
use std::path::PathBuf;

use super::area::OffError;
use super::areas::MAX_PRIORITY;
use crate::tier::file_store::OpenError;
use crate::units::{AreaId, MAX_AREAS};

/// Why a swap area can't be switched on or off. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub enum SwapError {
    /// Every area number is taken.
    #[error("{MAX_AREAS} swap areas are on, no more are possible")]
    TooManyAreas,
    /// A priority beyond the highest.
    #[error("swap priority {priority} is above {MAX_PRIORITY}")]
    Priority {
        /// What was asked for.
        priority: u16,
    },
    /// The file can't be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Nothing but a header fits.
    #[error("{} has no room for a slot", path.display())]
    NoSlots {
        /// The store's path.
        path: PathBuf,
    },
    /// No address space for the slot map and the checksums.
    #[error("no memory for the tables of {slots} slots")]
    Tables {
        /// How many slots the area has.
        slots: u32,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// There is no such area.
    #[error("swap {id} is not on")]
    NotOn {
        /// The number asked for.
        id: AreaId,
    },
    /// The area is being switched off by somebody else.
    #[error("swap {id} is being switched off already")]
    OffBegun {
        /// The area.
        id: AreaId,
    },
    /// The area is not being switched off.
    #[error("swap {id} is not being switched off")]
    OffNotBegun {
        /// The area.
        id: AreaId,
    },
    /// Pages are still in it.
    #[error("swap {id} still has {used} slots in use")]
    InUse {
        /// The area.
        id: AreaId,
        /// Slots in use.
        used: u32,
    },
}

impl SwapError {
    pub(super) fn off(id: AreaId, error: OffError) -> Self {
        match error {
            OffError::Begun => Self::OffBegun { id },
            OffError::NotBegun => Self::OffNotBegun { id },
            OffError::InUse { used } => Self::InUse { id, used },
        }
    }
}
