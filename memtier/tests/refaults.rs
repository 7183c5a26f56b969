//! How far pages get before they are wanted back, and whose faults these are.

mod common;

use common::{Guest, range};

#[test]
fn a_refaults_distance_is_what_left_since_its_page_did() {
    let guest = Guest::with_swap(320);
    (0..320).for_each(|gfn| guest.fill(gfn, 1));
    (0..100).for_each(|gfn| (0..512).for_each(|word| guest.write(gfn, word, 0)));
    // One by one, since all of a batch leaves at one time.
    let leave = |gfn| assert_eq!(guest.tiers.evict(&[range(gfn, 1)]).unwrap().evicted, 1);
    (0..320).for_each(leave);
    // The first to leave is a zero page and comes back first: 320 left since, a 32nd is 10.
    guest.read(0, 0);
    guest.check(319, 1);
    guest.check(219, 1);
    // Brought back by a request, which says nothing about memory that is short.
    guest.tiers.lock(&[range(100, 10)]).unwrap();
    guest.tiers.shutdown();
    let refaults = guest.tiers.refaults();
    let found: Vec<_> = (0..).zip(refaults.by_distance).filter(|(_, count)| *count > 0).collect();
    assert_eq!((refaults.frames_per_step, refaults.left), (10, 320));
    assert_eq!(found, [(1, 1), (11, 1), (32, 1)]);
}

#[test]
fn major_faults_are_counted_for_the_vcpu_that_waited() {
    let guest = Guest::with_swap(64);
    // SAFETY: gettid takes and keeps nothing.
    let tid = || u32::try_from(unsafe { libc::gettid() }).unwrap();
    (0..64).for_each(|gfn| guest.fill(gfn, 1));
    (0..512).for_each(|word| guest.write(0, word, 0));
    guest.tiers.evict(&[range(0, 64)]).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            guest.tiers.set_vcpu_thread(0, tid());
            // A zero page is no major fault.
            (0..11).for_each(|gfn| _ = guest.read(gfn, 0));
        });
        scope.spawn(|| {
            guest.tiers.set_vcpu_thread(1, tid());
            (11..31).for_each(|gfn| guest.check(gfn, 1));
        });
    });
    // Neither vCPU: a device's thread.
    (31..64).for_each(|gfn| guest.check(gfn, 1));
    guest.tiers.shutdown();
    assert_eq!(guest.tiers.major_faults_by_vcpu(), [10, 20]);
    assert_eq!(guest.tiers.status().counters.faults_major, 63);
}
