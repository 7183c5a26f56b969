//! Pins for devices: their way to the tiers, which they do not know.
//!
//! Promises: a pin covers every page that the bytes touch. Must never: pin when there are no tiers.

use std::sync::Arc;

use devices::{NoPin, PinError, Pinned, Pinner};
use memtier::pins::PinError as Refusal;
use memtier::status::GuestRange;
use memtier::units::PAGE_SIZE;
use memtier::{ControlError, Memtier, PinGuard};

/// What devices pin with: the tiers if there are any.
pub fn pinner(memtier: Option<&Arc<Memtier>>) -> Arc<dyn Pinner> {
    match memtier {
        Some(memtier) => Arc::new(TierPinner(Arc::clone(memtier))),
        None => Arc::new(NoPin),
    }
}

struct TierPinner(Arc<Memtier>);

/// Pages that stay until it drops.
struct TierPin {
    _guard: PinGuard,
}

impl Pinned for TierPin {}

impl Pinner for TierPinner {
    fn pin(&self, gpa: u64, len: u64) -> Result<Box<dyn Pinned>, PinError> {
        let range = pages(gpa, len).ok_or(PinError::NotMemory { gpa, len })?;
        match self.0.pin(range) {
            Ok(guard) => Ok(Box::new(TierPin { _guard: guard })),
            Err(error) => Err(in_device_terms(error, gpa, len)),
        }
    }
}

fn in_device_terms(error: ControlError, gpa: u64, len: u64) -> PinError {
    match error {
        ControlError::Pin(Refusal::NotMemory { .. }) => PinError::NotMemory { gpa, len },
        ControlError::Pin(Refusal::Lost(page)) => PinError::Unreadable { gpa: page.gpa() },
        source => PinError::Failed { gpa, len, source: Box::new(source) },
    }
}

/// The whole pages around `len` bytes at `gpa`; `None` if they end beyond the address space.
fn pages(gpa: u64, len: u64) -> Option<GuestRange> {
    let page = PAGE_SIZE as u64;
    let start = gpa & !(page - 1);
    let end = gpa.checked_add(len)?.checked_next_multiple_of(page)?;
    Some(GuestRange { start, len: end - start })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_cover_every_page_touched() {
        let covered = |gpa, len| pages(gpa, len).map(|range| (range.start, range.len));
        assert_eq!(covered(0x1000, 0x1000), Some((0x1000, 0x1000)));
        assert_eq!(covered(0x1fff, 2), Some((0x1000, 0x2000)));
        assert_eq!(covered(0x1001, 1), Some((0x1000, 0x1000)));
        assert_eq!(covered(u64::MAX - 1, 1), None);
        assert_eq!(covered(0x1000, u64::MAX), None);
    }
}
