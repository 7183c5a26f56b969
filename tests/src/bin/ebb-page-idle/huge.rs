//! Transparent huge pages: one reference makes all of a page's frames busy, whichever way it is mapped.
//!
//! Must never: go on when the kernel made no huge page; then nothing would be shown.

use std::collections::BTreeSet;
use std::error::Error;

use ebb_tests::payload::rng::Rng;
use memtier::sys::kpageflags::{KPageFlags, Mapped, PageFrames};
use memtier::sys::uffd::Uffd;
use memtier::track::page_idle::PageIdle;
use memtier::units::PAGE_SIZE;

use crate::exact::{Scene, Tally, page_below};
use crate::ground::Ground;
use crate::tell;

const HUGE_PAGES: u32 = 4;
/// Base pages in a huge one.
const PER_HUGE: u32 = 512;
const ROUNDS: u32 = 50;

/// Huge pages, mapped as such and then page by page.
pub fn report() -> Result<(), Box<dyn Error>> {
    let ground = Ground::new((HUGE_PAGES + 1) * PER_HUGE)?;
    let memory = ground.memory()?;
    let huge = HUGE_PAGES * PER_HUGE;
    ground.advise(0, huge, libc::MADV_HUGEPAGE)?;
    ground.advise(huge, PER_HUGE, libc::MADV_NOHUGEPAGE)?;
    (0..ground.pages()).for_each(|page| ground.touch(page, true));
    ground.advise(0, huge, libc::MADV_COLLAPSE)?;
    tell("huge.tails", tails(&ground)?);
    // Only now: the kernel makes no huge pages of registered memory. It switches fault-around off, which would touch neighbours.
    let uffd = Uffd::open(memtier::units::FrameSize::Small)?;
    uffd.register(ground.at(0), u64::from(ground.pages()) * PAGE_SIZE as u64, false)?;
    let tracker = PageIdle::open()?;
    let scene = Scene { ground: &ground, memory: &memory, tracker: &tracker };
    compare("huge", &scene, true)?;
    // The same pages, mapped one by one.
    ground.advise(0, huge, libc::MADV_NOHUGEPAGE)?;
    ground.advise(0, huge, libc::MADV_DONTNEED)?;
    (0..huge).for_each(|page| ground.touch(page, false));
    tell("split.tails", tails(&ground)?);
    compare("split", &scene, true)?;
    // Broken up by the kernel when a part is given back, they are ordinary pages again.
    (0..HUGE_PAGES).try_for_each(|page| ground.advise(page * PER_HUGE, 1, libc::MADV_REMOVE))?;
    (0..HUGE_PAGES).for_each(|page| ground.touch(page * PER_HUGE, true));
    tell("broken.tails", tails(&ground)?);
    compare("broken", &scene, false)
}

fn tails(ground: &Ground) -> Result<u32, Box<dyn Error>> {
    let (frames, flags) = (PageFrames::open()?, KPageFlags::open()?);
    let mut reader = flags.reader();
    let mut tails = 0;
    for page in 0..ground.pages() {
        if let Mapped::At(pfn) = frames.at(ground.at(page))? {
            tails += u32::from(reader.flags(pfn)?.is_compound_tail());
        }
    }
    Ok(tails)
}

/// Touches a few pages each round; told shall be those, or with `whole` every frame of the huge pages they are in.
fn compare(name: &str, scene: &Scene<'_>, whole: bool) -> Result<(), Box<dyn Error>> {
    let mut rng = Rng::new(7);
    let mut tally = Tally::default();
    for round in 0..ROUNDS {
        let touched: BTreeSet<u32> = (0..=rng.below(3)).map(|_| page_below(&mut rng, scene.ground.pages())).collect();
        scene.arm()?;
        scene.touch(&touched, rng.below(2) == 1);
        let busy = touched.iter().flat_map(|page| {
            let first = page - page % PER_HUGE;
            let is_whole = whole && first < HUGE_PAGES * PER_HUGE;
            if is_whole { first..first + PER_HUGE } else { *page..*page + 1 }
        });
        tally.compare(&format!("{name} {round}"), &busy.collect(), &scene.told()?);
    }
    tell(&format!("{name}.touched"), tally.touched);
    tell(&format!("{name}.missed"), tally.missed);
    tell(&format!("{name}.invented"), tally.invented);
    tell(&format!("{name}.first_wrong"), tally.first_wrong);
    Ok(())
}
