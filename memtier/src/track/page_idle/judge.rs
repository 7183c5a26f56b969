//! Which host frame judges a guest frame, in one word.
//!
//! Must never: call the kernel.

use crate::sys::kpageflags::{Mapped, Pfn};

/// See the module. Frame numbers have at most 40 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judge(u64);

/// The guest frame itself is not mapped; others of its compound page are.
const ABSENT: u64 = 1 << 62;

impl Judge {
    /// The frame is not mapped, and nothing is known that it belongs to.
    pub const NOBODY: Self = Self(0);
    /// The frame is mapped, but where can't be said, or was not the same all the time.
    pub const UNKNOWN: Self = Self(u64::MAX);

    /// What a page table entry says.
    pub fn of(mapped: Mapped) -> Self {
        match mapped {
            Mapped::No => Self::NOBODY,
            Mapped::Hidden => Self::UNKNOWN,
            Mapped::At(pfn) => Self(pfn.0),
        }
    }

    /// The frame is not mapped, but belongs to a compound page that is, and would be found at this host frame.
    pub fn absent(pfn: Pfn) -> Self {
        Self(pfn.0 | ABSENT)
    }

    /// The same, with another host frame to ask.
    pub fn asking(self, pfn: Pfn) -> Self {
        Self(self.0 & ABSENT | pfn.0)
    }

    /// The host frame.
    pub fn pfn(self) -> Option<Pfn> {
        (self != Self::NOBODY && self != Self::UNKNOWN).then_some(Pfn(self.0 & !ABSENT))
    }

    /// Whether a page table entry leads to the guest frame itself.
    pub fn is_mapped(self) -> bool {
        self == Self::UNKNOWN || self.0 != 0 && self.0 & ABSENT == 0
    }

    /// Whether what was found before is still so, if the page table entry now says this.
    pub fn still_holds(self, mapped: Mapped) -> bool {
        let now = Self::of(mapped);
        self == now || now == Self::NOBODY && !self.is_mapped()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_judge_is_a_host_frame_or_says_why_not() {
        let (here, absent) = (Judge::of(Mapped::At(Pfn(7))), Judge::absent(Pfn(7)));
        assert_eq!((here.pfn(), here.is_mapped()), (Some(Pfn(7)), true));
        assert_eq!((absent.pfn(), absent.is_mapped()), (Some(Pfn(7)), false));
        assert_eq!((Judge::NOBODY.pfn(), Judge::NOBODY.is_mapped()), (None, false));
        assert_eq!((Judge::UNKNOWN.pfn(), Judge::UNKNOWN.is_mapped()), (None, true));
        assert_eq!(
            (here.asking(Pfn(4)), absent.asking(Pfn(4))),
            (Judge::of(Mapped::At(Pfn(4))), Judge::absent(Pfn(4)))
        );
    }

    #[test]
    fn what_was_found_holds_only_while_nothing_moves() {
        let here = Judge::of(Mapped::At(Pfn(7)));
        assert!(here.still_holds(Mapped::At(Pfn(7))) && Judge::UNKNOWN.still_holds(Mapped::Hidden));
        assert!(Judge::NOBODY.still_holds(Mapped::No) && Judge::absent(Pfn(7)).still_holds(Mapped::No));
        assert!(!here.still_holds(Mapped::At(Pfn(8))) && !here.still_holds(Mapped::No));
        assert!(!Judge::absent(Pfn(7)).still_holds(Mapped::At(Pfn(7))));
        assert!(!Judge::NOBODY.still_holds(Mapped::At(Pfn(7))));
    }
}
