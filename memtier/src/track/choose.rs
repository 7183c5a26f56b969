//! Which trackers this host has, and which one is best.
//!
//! Promises: the answer names its reason; a tracker that is called usable opens. Must never: choose one that sees only writes unasked.
//!
//! The order, by measurement (`docs/tracking.md`): `unmap` costs nothing for pages that stay idle, which is what most memory of most guests does,
//! while `page_idle` asks the kernel about every page in every scan. `unmap` is exact only while nobody else unmaps pages; where guest memory can't
//! be locked, the host's reclaim does, and `page_idle` is the better one.

use crate::status::{TrackerChoice, TrackerKind, TrackerOffer};
use crate::sys::pagemap::{Method, Pagemap};
use crate::track::page_idle;

/// What is known about this process and its guest beyond what the host tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Circumstances {
    /// Guest memory is locked against the host's reclaim.
    pub locked: bool,
    /// The hypervisor keeps a dirty log.
    pub dirty_log: bool,
}

/// The tracker to use, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Which.
    pub tracker: TrackerKind,
    /// Why, in a sentence.
    pub reason: String,
}

/// Every tracker, whether it can be used here, and what is missing or worth knowing.
pub fn offers(here: Circumstances) -> Vec<TrackerOffer> {
    TrackerKind::ALL.into_iter().map(|tracker| offer(tracker, here)).collect()
}

fn offer(tracker: TrackerKind, here: Circumstances) -> TrackerOffer {
    let (usable, note) = match tracker {
        TrackerKind::Unmap => unmap(here),
        TrackerKind::PageIdle => match page_idle::usable() {
            Ok(()) => (true, "reads the processor's accessed bits; the guest does not fault".to_owned()),
            Err(error) => (false, error.to_string()),
        },
        TrackerKind::DirtyLog if here.dirty_log => (true, "sees writes only".to_owned()),
        TrackerKind::DirtyLog => (false, "the hypervisor offers no dirty log".to_owned()),
    };
    TrackerOffer { tracker, usable, note }
}

fn unmap(here: Circumstances) -> (bool, String) {
    match Pagemap::open().map(|pagemap| pagemap.method()) {
        Err(error) => (false, format!("/proc/self/pagemap can't be read: {error}")),
        Ok(_) if !here.locked => {
            (true, "guest memory can't be locked: pages that the host's reclaim unmaps look idle".to_owned())
        }
        Ok(Method::Read) => {
            (true, "exact; without PAGEMAP_SCAN, which Linux has from 6.7 on, scans take longer".to_owned())
        }
        Ok(Method::Scan) => (true, "exact, and pages that stay idle cost next to nothing".to_owned()),
    }
}

/// The best tracker of these offers, or the one that was named.
pub fn choose(wanted: TrackerChoice, offers: &[TrackerOffer], here: Circumstances) -> Choice {
    if let Some(tracker) = wanted.named() {
        return Choice { tracker, reason: "it was asked for".to_owned() };
    }
    let usable = |kind| offers.iter().find(|offer| offer.tracker == kind).filter(|offer| offer.usable);
    let chosen = match (usable(TrackerKind::Unmap), usable(TrackerKind::PageIdle)) {
        (_, Some(_)) if !here.locked => {
            (TrackerKind::PageIdle, "guest memory can't be locked, so unmap would not be exact")
        }
        (Some(offer), _) => (TrackerKind::Unmap, offer.note.as_str()),
        (None, Some(offer)) => (TrackerKind::PageIdle, offer.note.as_str()),
        // Opening it then says what is missing.
        (None, None) => (TrackerKind::Unmap, "nothing better is there"),
    };
    Choice { tracker: chosen.0, reason: chosen.1.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(unmap: bool, page_idle: bool, locked: bool) -> TrackerKind {
        let offer = |tracker, usable| TrackerOffer { tracker, usable, note: "so it is".to_owned() };
        let offers = [offer(TrackerKind::Unmap, unmap), offer(TrackerKind::PageIdle, page_idle)];
        let here = Circumstances { locked, dirty_log: true };
        let choice = choose(TrackerChoice::Auto, &offers, here);
        assert!(!choice.reason.is_empty());
        choice.tracker
    }

    #[test]
    fn unmap_is_chosen_unless_it_is_missing_or_not_exact_and_page_idle_is_there() {
        assert_eq!(chosen(true, true, true), TrackerKind::Unmap);
        assert_eq!(chosen(true, false, true), TrackerKind::Unmap);
        assert_eq!(chosen(true, true, false), TrackerKind::PageIdle);
        assert_eq!(chosen(true, false, false), TrackerKind::Unmap);
        assert_eq!(chosen(false, true, true), TrackerKind::PageIdle);
    }

    #[test]
    fn what_was_named_is_taken() {
        let here = Circumstances { locked: true, dirty_log: false };
        assert_eq!(choose(TrackerChoice::DirtyLog, &[], here).tracker, TrackerKind::DirtyLog);
    }

    #[test]
    fn every_tracker_is_offered_with_a_word_about_it() {
        let offers = offers(Circumstances { locked: true, dirty_log: false });
        assert_eq!(offers.iter().map(|offer| offer.tracker).collect::<Vec<_>>(), TrackerKind::ALL);
        assert!(offers.iter().all(|offer| !offer.note.is_empty()), "{offers:?}");
        assert!(offers[0].usable && !offers[2].usable, "{offers:?}");
    }
}
