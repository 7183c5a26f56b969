//! The emulated host by itself, without `ebb`: if one of these fails, the others say nothing about Ebb.

use std::time::Duration;

use ebb_tests::host::job::{Job, JobError, Machine, Place};
use ebb_tests::host::outcome::Line;

/// Runs a script on both kinds of host where it makes no difference.
fn run(name: &str, script: &str) -> Result<ebb_tests::host::outcome::Outcome, JobError> {
    Job::new(name, script).limit(Duration::from_secs(120)).run(Place::Emulated, |_, _| {})
}

#[test]
fn the_emulated_host_has_what_ebb_needs() {
    let script = r#"
        step looking
        [ -c /dev/kvm ] && result kvm yes
        [ -w /sys/kernel/mm/page_idle/bitmap ] && result page_idle yes
        grep -qw svm /proc/cpuinfo && result svm yes
        result work_type "$(stat -f -c %T "$EBB_WORK")"
        result userfaultfd "$(cat /proc/sys/vm/unprivileged_userfaultfd)"
        dd if=/dev/zero of="$EBB_WORK/direct" bs=4096 count=4 oflag=direct 2>/dev/null && result direct yes
        result memory_kib "$(sed -n 's/^MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo)"
    "#;
    let outcome = run("itself-needs", script).expect("the host runs the script");
    for name in ["kvm", "page_idle", "svm", "direct"] {
        assert_eq!(outcome.text(name).expect(name), "yes", "{name}");
    }
    assert_eq!(outcome.text("work_type").expect("reported"), "ext2/ext3");
    assert!(outcome.number::<u64>("memory_kib").expect("reported") > 900_000);
    assert_eq!(outcome.steps[0].1, "looking");
}

#[test]
fn a_script_that_fails_is_reported_with_its_reason_and_the_console() {
    match run("itself-fails", "echo remember the milk >/dev/console\nfail 'no cheese'\n") {
        Err(JobError::Failed { reason, tail, .. }) => {
            assert_eq!(reason, "no cheese");
            assert!(tail.contains("remember the milk"), "{tail}");
        }
        other => panic!("{other:?}"),
    }
    match run("itself-status", "exit 7\n") {
        Err(JobError::Failed { reason, .. }) => assert_eq!(reason, "the script ended with status 7"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_host_that_ends_before_its_script_is_no_success() {
    match run("itself-gone", "step off\npoweroff -f\n") {
        Err(JobError::Failed { reason, .. }) => assert_eq!(reason, "the host ended before its script did"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_script_that_hangs_is_ended_at_its_limit() {
    let job = Job::new("itself-hangs", "step sleeping\nsleep 1000\n").limit(Duration::from_secs(10));
    match job.run(Place::Emulated, |_, _| {}) {
        Err(JobError::Timeout { last_step, .. }) => assert_eq!(last_step, "sleeping"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_emulated_host_without_a_sign_of_life_is_started_again_and_then_given_up() {
    // The sign of life comes from a second process of the first program's script.
    let script = r#"
        step stopping
        for process in /proc/[0-9]*; do
            [ "$(tr '\0' ' ' <"$process/cmdline")" = '/bin/sh /init ' ] && [ "$process" != /proc/1 ] && kill -STOP "${process#/proc/}"
        done
        sleep 1000
    "#;
    let job = Job::new("itself-stuck", script).silence(Duration::from_secs(12));
    let mut starts = 0;
    let result = job.run(Place::Emulated, |_, line| starts += u32::from(*line == Line::Step("stopping".to_owned())));
    match result {
        Err(JobError::Stuck { attempts, last_step, .. }) => {
            assert_eq!((attempts, starts, last_step.as_str()), (3, 3, "stopping"));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_same_script_runs_on_this_machine() {
    let file = std::env::current_exe().expect("own path");
    let script = r#"[ -x "$TOOL" ] && result tool yes; result said "$WORDS"; touch "$EBB_WORK/here"; exit 3"#;
    let job =
        Job::new("itself-native", script).file("TOOL", &file).variable("WORDS", "it's").machine(Machine::default());
    match job.run(Place::Native, |_, _| {}) {
        Err(JobError::Failed { reason, .. }) => assert_eq!(reason, "the script ended with status 3"),
        other => panic!("{other:?}"),
    }
}
