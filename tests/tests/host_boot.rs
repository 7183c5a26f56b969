//! Linux guests boot under `ebb run` on the emulated host and end in every way a machine can end.

use ebb_tests::host::artifacts::{Kernel, our_kernel, program, stock_kernel};
use ebb_tests::host::guest::{BootResult, BootRun, guest_job};
use ebb_tests::host::job::Place;
use ebb_tests::host::outcome::Outcome;

/// What every guest must find: a writable disk of 4 MiB, a read-only one of 8 MiB, the random number generator.
fn assert_finds_its_devices(result: &BootResult, cpus: u8) {
    let guest = &result.guest;
    assert!(result.said(&format!("cpus={cpus}")), "{guest:?}");
    assert!(result.said("disk=vda sectors=8192 ro=0"), "{guest:?}");
    assert!(result.said("disk=vdb sectors=16384 ro=1"), "{guest:?}");
    assert_eq!(guest.iter().filter(|line| *line == "virtio=0x0002 driver=virtio_blk").count(), 2, "{guest:?}");
    assert!(result.said("virtio=0x0004 driver=virtio_rng"), "{guest:?}");
    assert!(result.said("rng=virtio_rng.0") && result.said("rng_bytes=64"), "{guest:?}");
    let memory: u64 =
        result.value("memory_kib").and_then(|kib| kib.parse().ok()).expect("the guest says how much memory it has");
    assert!((190 << 10..256 << 10).contains(&memory), "{memory} KiB of 256 MiB");
}

fn assert_ends_well(result: &BootResult) {
    assert_eq!(result.status, 0, "{}", result.stderr);
    assert!(!result.panicked);
}

/// A failure is one clear line and a status of its own.
fn assert_ends_badly(result: &BootResult) {
    assert_eq!(result.status, 1, "{}", result.stderr);
    let lines: Vec<&str> = result.stderr.split('|').filter(|line| !line.is_empty()).collect();
    assert!(matches!(lines[..], [line] if line.starts_with("ebb: ") && line.contains("triple fault")), "{lines:?}");
}

fn our_guest(name: &str, elf: bool, cpus: u8, cmdline: &str, steps: &str) -> BootResult {
    let kernel = our_kernel().expect("our kernel");
    let image = if elf { kernel.vmlinux.as_ref().expect("it has one") } else { &kernel.bz_image };
    let run = BootRun { image, kernel: &kernel, cpus, cmdline, steps, options: "" };
    run.run(name).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn our_kernel_boots_as_bzimage_with_one_vcpu_and_powers_off() {
    let result = our_guest("boot-bzimage-1", false, 1, "", "probe,poweroff");
    assert_finds_its_devices(&result, 1);
    assert_ends_well(&result);
}

#[test]
fn our_kernel_boots_as_bzimage_with_four_vcpus_and_powers_off() {
    let result = our_guest("boot-bzimage-4", false, 4, "", "probe,poweroff");
    assert_finds_its_devices(&result, 4);
    assert_ends_well(&result);
}

#[test]
fn our_kernel_boots_by_its_pvh_entry_with_one_vcpu_and_powers_off() {
    let result = our_guest("boot-pvh-1", true, 1, "", "probe,poweroff");
    assert_finds_its_devices(&result, 1);
    assert_ends_well(&result);
}

#[test]
fn our_kernel_boots_by_its_pvh_entry_with_four_vcpus_and_powers_off() {
    let result = our_guest("boot-pvh-4", true, 4, "", "probe,poweroff");
    assert_finds_its_devices(&result, 4);
    assert_ends_well(&result);
}

#[test]
fn a_guest_that_reboots_ends_ebb_with_success() {
    assert_ends_well(&our_guest("boot-reboot", false, 1, "", "reboot"));
}

#[test]
fn a_guest_that_reboots_through_the_keyboard_controller_ends_ebb_with_success() {
    assert_ends_well(&our_guest("boot-reboot-k", false, 1, "reboot=k", "reboot"));
}

#[test]
fn a_triple_fault_ends_ebb_with_failure() {
    assert_ends_badly(&our_guest("boot-triple", false, 1, "reboot=t", "reboot"));
}

#[test]
fn a_guest_whose_kernel_panics_ends_ebb_with_failure_when_told_to_fault() {
    let result = our_guest("boot-panic", false, 1, "reboot=t", "panic");
    assert!(result.panicked);
    assert_ends_badly(&result);
}

#[test]
fn debians_stock_cloud_kernel_boots_to_its_initramfs_and_finds_disk_and_rng() {
    let kernel = stock_kernel().expect("the stock kernel");
    let run = BootRun {
        image: &kernel.bz_image,
        kernel: &kernel,
        cpus: 2,
        cmdline: "",
        steps: "probe,poweroff",
        options: "",
    };
    let result = run.run("boot-stock").unwrap_or_else(|error| panic!("{error}"));
    assert_finds_its_devices(&result, 2);
    assert!(result.value("release").expect("uname").ends_with("-cloud-amd64"), "{:?}", result.guest);
    assert_ends_well(&result);
}

/// A guest that does nothing of its own accord is ended in one of the ways that `outside.sh` knows.
fn end_from_outside(name: &str, kernel: &Kernel, way: &str) -> Outcome {
    let job = guest_job(name, include_str!("../src/host/scripts/outside.sh"), kernel, &kernel.bz_image);
    let job = job.unwrap_or_else(|error| panic!("{error}")).variable("WAY", way);
    let job = job.file("HTTP", &program("ebb-http").expect("built"));
    let outcome = job.run(Place::Emulated, |_, _| {}).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(outcome.text("processes_left").expect("reported").trim(), "0");
    outcome
}

#[test]
fn ctrl_alt_del_through_the_api_reboots_our_kernel() {
    let outcome = end_from_outside("outside-cad", &our_kernel().expect("our kernel"), "ctrl-alt-del");
    assert_eq!(outcome.text("status").expect("reported"), "0", "{}", outcome.text("stderr").expect("reported"));
    assert!(outcome.text("socket_left").is_err(), "the socket must go with its program");
    assert_eq!(outcome.json("answer").expect("JSON")["state"], "Running");
}

#[test]
fn ctrl_alt_del_through_the_api_reboots_debians_stock_kernel() {
    let outcome = end_from_outside("outside-cad-stock", &stock_kernel().expect("the stock kernel"), "ctrl-alt-del");
    assert_eq!(outcome.text("status").expect("reported"), "0", "{}", outcome.text("stderr").expect("reported"));
}

#[test]
fn a_termination_signal_ends_the_guest_in_order_and_is_no_success() {
    let outcome = end_from_outside("outside-term", &our_kernel().expect("our kernel"), "term");
    assert_eq!(outcome.text("status").expect("reported"), "1");
    assert_eq!(outcome.text("stderr").expect("reported"), "ebb: stopped by SIGTERM|");
    assert!(outcome.text("socket_left").is_err(), "the socket must go with its program");
}

#[test]
fn after_a_kill_the_same_guest_starts_again_over_socket_and_swap_file() {
    let outcome = end_from_outside("outside-kill", &our_kernel().expect("our kernel"), "kill");
    assert_eq!(outcome.text("status").expect("reported"), "137");
    assert_eq!(outcome.text("second_status").expect("reported"), "0");
}
