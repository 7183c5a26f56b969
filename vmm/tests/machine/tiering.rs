//! Machines with tiers: pages leave and come back under a running guest, and a page that is lost ends or warns it, with its address.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::common::{Listener, MOV_DX_PORT, OUT_EAX, config, image};
use memtier::status::{AreaSpec, GuestRange, TrackerChoice};
use vmm::config::DirtyLogMode;
use vmm::{ExitReason, Machine, TieringConfig};

/// The pages that payloads work on.
const FIRST: u32 = 0x40_0000;
const PAGES: u32 = 8;

fn with_tiers(code: &[u8], cpus: u8, swap: &Path) -> (Arc<Machine>, Arc<Listener>) {
    let kernel = image(code);
    let (listener, extra) = Listener::new();
    let mut config = config(&kernel, cpus);
    let area = AreaSpec { path: swap.to_path_buf(), size: Some(4 << 20), ..AreaSpec::default() };
    config.tiering =
        Some(TieringConfig { tracker: TrackerChoice::Unmap, dirty_log: DirtyLogMode::default(), areas: vec![area] });
    let machine = Machine::build_with(config, extra).expect("built");
    machine.start().expect("started");
    (machine, listener)
}

fn range() -> GuestRange {
    GuestRange { start: u64::from(FIRST), len: u64::from(PAGES) << 12 }
}

/// Adds one to the first word of each page, says whether all words are the same (0) or not (1), and again.
fn counter() -> Vec<u8> {
    let mut code = MOV_DX_PORT.to_vec();
    let begin = code.len();
    for page in 0..PAGES {
        code.extend([0xff, 0x04, 0x25]); // inc dword [page]
        code.extend((FIRST + (page << 12)).to_le_bytes());
    }
    code.extend([0x31, 0xc0]); // xor eax, eax
    code.extend([0x8b, 0x0c, 0x25]); // mov ecx, [first]
    code.extend(FIRST.to_le_bytes());
    for page in 1..PAGES {
        code.extend([0x3b, 0x0c, 0x25]); // cmp ecx, [page]
        code.extend((FIRST + (page << 12)).to_le_bytes());
        code.extend([0x74, 0x05]); // je +5
        code.extend([0xb8, 1, 0, 0, 0]); // mov eax, 1
    }
    code.push(OUT_EAX);
    let distance = i32::try_from(code.len() + 5 - begin).expect("a small loop");
    code.push(0xe9); // jmp begin
    code.extend((-distance).to_le_bytes());
    code
}

#[test]
fn pages_leave_and_come_back_under_a_running_guest() {
    let directory = tempfile::tempdir().expect("directory");
    let (machine, listener) = with_tiers(&counter(), 1, &directory.path().join("swap"));
    let memtier = Arc::clone(machine.memtier().expect("tiers"));
    let (mut evicted, mut rounds) = (0, 0);
    let began = Instant::now();
    // How many leave depends on who is faster, since a page that is written at that moment stays. So it goes on until some have.
    while rounds < 100 || evicted == 0 {
        assert!(began.elapsed() < Duration::from_secs(60), "no page left under way in {rounds} rounds");
        rounds += 1;
        let before = listener.counts().get(&0).copied().unwrap_or(0);
        listener.wait(|counts| counts.get(&0).copied().unwrap_or(0) > before);
        evicted += memtier.evict(&[range()]).expect("evicted").evicted;
    }
    machine.pause().expect("paused");
    let outcomes = memtier.evict(&[range()]).expect("evicted");
    assert_eq!(outcomes.evicted + outcomes.absent, u64::from(PAGES), "{outcomes:?}");
    machine.resume().expect("resumed");
    machine.stop();
    assert_eq!(machine.wait(), ExitReason::Stopped);
    let counts = listener.counts();
    assert_eq!(counts.get(&1), None, "words differed: {counts:?}");
    assert!(memtier.status().counters.faults_major > 0);
}

#[test]
fn a_lost_page_ends_a_guest_that_takes_no_machine_checks_and_is_named() {
    let directory = tempfile::tempdir().expect("directory");
    let swap = directory.path().join("swap");
    let (machine, listener) = with_tiers(&counter(), 1, &swap);
    let memtier = machine.memtier().expect("tiers");
    listener.wait(|counts| counts.get(&0).copied().unwrap_or(0) > 10);
    machine.pause().expect("paused");
    let outcomes = memtier.evict(&[range()]).expect("evicted");
    assert_eq!(outcomes.evicted, u64::from(PAGES), "{outcomes:?}");
    let file = std::fs::OpenOptions::new().write(true).open(&swap).expect("swap file");
    file.write_all_at(&vec![0xee; (4 << 20) - 4096], 4096).expect("overwritten");
    file.sync_all().expect("synced");
    machine.resume().expect("resumed");
    let ExitReason::Failed(what) = machine.wait() else { panic!("{:?}", machine.wait()) };
    // The pause may have come anywhere in the loop, so that any of the pages can be the first.
    assert!(what.contains("guest memory at 0x40") && what.contains("which is lost"), "{what}");
    assert!(what.contains("takes no machine check"), "{what}");
    assert!(memtier.status().poisoned_pages >= 1);
}

#[test]
fn a_swap_file_that_cannot_be_used_is_named() {
    let kernel = image(&counter());
    let mut config = config(&kernel, 1);
    let area = AreaSpec::new("/");
    config.tiering =
        Some(TieringConfig { tracker: TrackerChoice::Unmap, dirty_log: DirtyLogMode::default(), areas: vec![area] });
    let error = Machine::build(config).map(drop).expect_err("a directory").to_string();
    assert!(error.contains('/'), "{error}");
}
