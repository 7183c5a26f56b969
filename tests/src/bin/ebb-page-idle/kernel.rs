//! What the kernel does by itself, for the record: how many fresh pages are on no list, and how many accesses a mark hides when translations
//! stay cached.
//!
//! Must never: use the tracker, whose task it is to do better.

use std::error::Error;

use memtier::sys::kpageflags::{KPageFlags, Mapped, PageFrames, Pfn};
use memtier::sys::mem;
use memtier::sys::page_idle::scratch::Scratch;
use memtier::sys::page_idle::{CHUNK_FRAMES, IdleBitmap};
use memtier::units::PAGE_SIZE;

use crate::ground::Ground;
use crate::tell;

const PAGES: u32 = 200;

/// Tells both.
pub fn report() -> Result<(), Box<dyn Error>> {
    let ground = Ground::new(PAGES)?;
    mem::lock_on_fault(ground.at(0), u64::from(PAGES) * PAGE_SIZE as u64)?;
    (0..PAGES).for_each(|page| ground.touch(page, true));
    let host = Kernel { ground, frames: PageFrames::open()?, flags: KPageFlags::open()?, bitmap: IdleBitmap::open()? };
    let scratch = Scratch::new()?;
    tell("fresh.pages", PAGES);
    tell("fresh.unlisted", host.unlisted()?);
    tell("fresh.not_markable", host.not_idle_after_marking()?);
    scratch.drain_lru()?;
    tell("drained.unlisted", host.unlisted()?);
    tell("drained.not_markable", host.not_idle_after_marking()?);
    tell("stale.missed", host.missed_after_marking(|| Ok(()))?);
    tell("flushed.missed", host.missed_after_marking(|| scratch.flush_tlb())?);
    Ok(())
}

struct Kernel {
    ground: Ground,
    frames: PageFrames,
    flags: KPageFlags,
    bitmap: IdleBitmap,
}

impl Kernel {
    fn pfn(&self, page: u32) -> Result<Pfn, Box<dyn Error>> {
        match self.frames.at(self.ground.at(page))? {
            Mapped::At(pfn) => Ok(pfn),
            other => Err(format!("page {page} is {other:?}").into()),
        }
    }

    fn unlisted(&self) -> Result<u32, Box<dyn Error>> {
        let mut unlisted = 0;
        for page in 0..PAGES {
            let (_, flags) = self.flags.reader().head(self.pfn(page)?)?;
            unlisted += u32::from(!flags.is_on_lru());
        }
        Ok(unlisted)
    }

    fn mark_all(&self) -> Result<(), Box<dyn Error>> {
        for page in 0..PAGES {
            let pfn = self.pfn(page)?.0;
            self.bitmap.mark(pfn / CHUNK_FRAMES, &[(1_u64 << (pfn % CHUNK_FRAMES)).to_ne_bytes()])?;
        }
        Ok(())
    }

    fn not_idle(&self) -> Result<u32, Box<dyn Error>> {
        let mut busy = 0;
        for page in 0..PAGES {
            let pfn = self.pfn(page)?.0;
            // Afterwards the flags are up to date, for frames of the last chunk of memory, too.
            self.bitmap.read(pfn / CHUNK_FRAMES, &mut [[0; 8]])?;
            busy += u32::from(!self.flags.reader().flags(Pfn(pfn))?.is_idle());
        }
        Ok(busy)
    }

    fn not_idle_after_marking(&self) -> Result<u32, Box<dyn Error>> {
        self.mark_all()?;
        self.not_idle()
    }

    /// Touches all pages, marks them, does `between`, and touches them again: how many look idle nevertheless.
    fn missed_after_marking(&self, between: impl FnOnce() -> std::io::Result<()>) -> Result<u32, Box<dyn Error>> {
        (0..PAGES).for_each(|page| self.ground.touch(page, false));
        self.mark_all()?;
        between()?;
        (0..PAGES).for_each(|page| self.ground.touch(page, false));
        Ok(PAGES - self.not_idle()?)
    }
}
