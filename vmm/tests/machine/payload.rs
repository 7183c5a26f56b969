//! Machines with payload guests, on this host's KVM.

use std::sync::Arc;

use crate::common::{HALT, LOAD, Listener, MOV_DX_PORT, OUT_EAX, config, image};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use vmm::{ExitReason, Machine, MachineError, MachineState};

/// Says its vCPU index for ever.
fn chatter() -> Vec<u8> {
    [&MOV_DX_PORT[..], &[0x89, 0xf8, OUT_EAX, 0xeb, 0xfd]].concat()
}

fn run(code: &[u8], cpus: u8) -> (ExitReason, Arc<Listener>) {
    let kernel = image(code);
    let (listener, extra) = Listener::new();
    let machine = Machine::build_with(config(&kernel, cpus), extra).expect("built");
    machine.start().expect("started");
    (machine.wait(), listener)
}

#[test]
fn a_guest_ends_by_each_of_its_ways() {
    let sleep: &[u8] = &[0x66, 0xba, 0x00, 0x06, 0xb0, 5 << 2 | 1 << 5, 0xee];
    let reset_register: &[u8] = &[0x66, 0xba, 0x08, 0x06, 0xb0, 1, 0xee];
    let keyboard: &[u8] = &[0xb0, 0xfe, 0xe6, 0x64];
    for (code, reason) in
        [(sleep, ExitReason::PowerOff), (reset_register, ExitReason::Reset), (keyboard, ExitReason::Reset)]
    {
        for cpus in [1, 2] {
            assert_eq!(run(&[code, &HALT].concat(), cpus).0, reason, "{code:x?}");
        }
    }
}

#[test]
fn a_fault_without_handlers_is_a_triple_fault() {
    // mov rax, [1 << 32]: nothing is mapped there.
    let code = [0x48, 0xa1, 0, 0, 0, 0, 1, 0, 0, 0, 0xf4];
    assert_eq!(run(&code, 1).0, ExitReason::TripleFault);
}

#[test]
fn every_vcpu_starts_as_the_contract_says() {
    // Says index, memory, stack pointer, then vCPU 0 says a last word.
    let say = |load: &[u8]| [load, &[OUT_EAX]].concat();
    let code = [
        MOV_DX_PORT.to_vec(),
        say(&[0x89, 0xf8]),       // mov eax, edi
        say(&[0x89, 0xf0]),       // mov eax, esi
        say(&[0x48, 0x89, 0xe0]), // mov rax, rsp
        HALT.to_vec(),
    ]
    .concat();
    let kernel = image(&code);
    let (listener, extra) = Listener::new();
    let machine = Machine::build_with(config(&kernel, 3), extra).expect("built");
    machine.start().expect("started");
    listener.wait(|counts| counts.values().sum::<u64>() == 9);
    let counts = listener.counts();
    assert_eq!(counts.get(&(16 << 20)), Some(&3), "memory: {counts:?}");
    assert_eq!(counts.get(&0), Some(&4), "stack pointers and index 0: {counts:?}");
    assert_eq!((counts.get(&1), counts.get(&2)), (Some(&1), Some(&1)), "{counts:?}");
}

#[test]
fn string_instructions_reach_a_device_access_by_access() {
    let data = LOAD + 0x100;
    let mut code = MOV_DX_PORT.to_vec();
    code.extend([0xbe]); // mov esi, data
    code.extend(&u32::try_from(data).expect("low").to_le_bytes());
    code.extend([0xb9, 3, 0, 0, 0]); // mov ecx, 3
    code.extend([0xfc, 0xf3, 0x6e]); // cld; rep outsb
    code.extend([0xbf]); // mov edi, data
    code.extend(&u32::try_from(data).expect("low").to_le_bytes());
    code.extend([0xb9, 2, 0, 0, 0]); // mov ecx, 2
    code.extend([0xf3, 0x6d]); // rep insd
    code.extend([0xa1]); // mov eax, [data + 4]
    code.extend(&(data + 4).to_le_bytes());
    code.extend([OUT_EAX]);
    code.extend(HALT);
    code.resize(0x100, 0);
    code.extend(b"abcdefgh");
    let kernel = image(&code);
    let (listener, extra) = Listener::new();
    let machine = Machine::build_with(config(&kernel, 1), extra).expect("built");
    machine.start().expect("started");
    listener.wait(|counts| counts.contains_key(&0x5a5a_5a5a));
    let writes = listener.writes();
    assert_eq!(writes[..3], [b"a".to_vec(), b"b".to_vec(), b"c".to_vec()]);
}

#[test]
fn pausing_a_thousand_times_loses_nothing_and_stops_everything() {
    for cpus in [1, 2] {
        let kernel = image(&chatter());
        let (listener, extra) = Listener::new();
        let machine = Machine::build_with(config(&kernel, cpus), extra).expect("built");
        machine.start().expect("started");
        for round in 0..1000 {
            machine.pause().expect("paused");
            let before = listener.counts();
            assert_eq!(machine.state(), MachineState::Paused);
            if round % 50 == 0 {
                // Long enough for a vCPU that still ran to say something.
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
            assert_eq!(listener.counts(), before);
            machine.resume().expect("resumed");
            if round % 50 == 0 {
                let so_far = |index: u32| before.get(&index).copied().unwrap_or(0);
                listener.wait(|now| {
                    (0..u32::from(cpus)).all(|index| now.get(&index).copied().unwrap_or(0) > so_far(index))
                });
            }
        }
        machine.stop();
        assert_eq!(machine.wait(), ExitReason::Stopped);
        let counts = listener.counts();
        assert_eq!(counts.len(), usize::from(cpus), "only indices were said: {counts:?}");
    }
}

#[test]
fn a_halted_guest_can_be_paused_and_stopped() {
    let code = [&MOV_DX_PORT[..], &[OUT_EAX], &HALT].concat();
    let kernel = image(&code);
    let (listener, extra) = Listener::new();
    let machine = Machine::build_with(config(&kernel, 2), extra).expect("built");
    machine.start().expect("started");
    listener.wait(|counts| counts.values().sum::<u64>() == 2);
    machine.pause().expect("paused");
    machine.resume().expect("resumed");
    machine.stop();
    assert_eq!(machine.wait(), ExitReason::Stopped);
}

#[test]
fn states_are_kept() {
    let kernel = image(&chatter());
    let (_listener, extra) = Listener::new();
    let machine = Machine::build_with(config(&kernel, 1), extra).expect("built");
    let refused = |result: Result<(), MachineError>| result.expect_err("refused").to_string();
    assert_eq!(machine.state(), MachineState::NotStarted);
    assert_eq!(refused(machine.pause()), "cannot pause a machine that is not started");
    assert_eq!(refused(machine.resume()), "cannot resume a machine that is not started");
    assert_eq!(refused(machine.send_ctrl_alt_del()), "cannot type on a machine that is not started");
    machine.start().expect("started");
    assert_eq!(refused(machine.start()), "cannot start a machine that is running");
    machine.resume().expect("nothing to do");
    machine.pause().expect("paused");
    machine.pause().expect("nothing to do");
    assert_eq!(refused(machine.start()), "cannot start a machine that is paused");
    let exited = machine.on_exit();
    exited.read().expect_err("not yet");
    machine.stop();
    machine.stop();
    assert_eq!(machine.wait(), ExitReason::Stopped);
    exited.read().expect("readable");
    machine.on_exit().read().expect("still readable");
    assert_eq!(machine.state(), MachineState::Exited);
    assert_eq!(refused(machine.pause()), "cannot pause a machine that has exited");
}

#[test]
fn a_machine_that_never_started_can_be_stopped() {
    let kernel = image(&chatter());
    let machine = Machine::build(config(&kernel, 2)).expect("built");
    machine.stop();
    assert_eq!(machine.wait(), ExitReason::Stopped);
    machine.start().expect_err("too late");
}

#[test]
fn dropping_a_running_machine_ends_it_and_unmaps_its_memory() {
    let kernel = image(&chatter());
    let (listener, extra) = Listener::new();
    let machine = Machine::build_with(config(&kernel, 2), extra).expect("built");
    let address = machine.memory().get_host_address(GuestAddress(0)).expect("RAM") as usize;
    let mapped = || {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("maps");
        maps.lines().any(|line| line.starts_with(&format!("{address:x}-")) && line.contains("ebb-ram"))
    };
    machine.start().expect("started");
    listener.wait(|counts| counts.len() == 2);
    assert!(mapped());
    drop(machine);
    assert!(!mapped());
    let after = listener.counts();
    assert_eq!(listener.counts(), after);
}

#[test]
fn what_a_guest_writes_is_there_after_its_end() {
    // mov dword [LOAD + 0x1000], 0x12345678, then power off.
    let mut code = vec![0xc7, 0x04, 0x25];
    code.extend(&0x20_1000u32.to_le_bytes());
    code.extend(&0x1234_5678u32.to_le_bytes());
    code.extend([0x66, 0xba, 0x00, 0x06, 0xb0, 0x34, 0xee]);
    code.extend(HALT);
    let kernel = image(&code);
    let machine = Machine::build(config(&kernel, 1)).expect("built");
    machine.start().expect("started");
    assert_eq!(machine.wait(), ExitReason::PowerOff);
    assert_eq!(machine.memory().read_obj::<u32>(GuestAddress(LOAD + 0x1000)).expect("RAM"), 0x1234_5678);
}

#[test]
fn the_largest_number_of_vcpus_starts_and_memory_above_the_hole_is_there() {
    let code = [&MOV_DX_PORT[..], &[0x89, 0xf8, OUT_EAX], &HALT].concat();
    let kernel = image(&code);
    let (listener, extra) = Listener::new();
    let mut config = config(&kernel, 32);
    config.memory = 5 << 30;
    let machine = Machine::build_with(config, extra).expect("built");
    machine.start().expect("started");
    listener.wait(|counts| counts.len() == 32);
    machine.memory().write_obj(1u8, GuestAddress((6 << 30) - 1)).expect("the last byte");
    machine.memory().write_obj(1u8, GuestAddress(6 << 30)).expect_err("behind it");
    machine.memory().write_obj(1u8, GuestAddress(0xc000_0000)).expect_err("the hole");
    machine.stop();
    assert_eq!(machine.wait(), ExitReason::Stopped);
}

#[test]
fn two_devices_at_one_port_are_refused_by_name() {
    let kernel = image(&chatter());
    let (_listener, mut extra) = Listener::new();
    extra[0].port = 0x3fc;
    let error = Machine::build_with(config(&kernel, 1), extra).map(drop).expect_err("taken").to_string();
    assert!(error.contains("serial port") && error.contains("0x3f8"), "{error}");
}

#[test]
fn files_that_do_not_fit_their_place_are_refused_by_name() {
    let kernel = image(&chatter());
    let refused = |change: &dyn Fn(&mut vmm::MachineConfig)| {
        let mut config = config(&kernel, 1);
        change(&mut config);
        Machine::build(config).map(drop).expect_err("refused").to_string()
    };
    let missing = refused(&|config| config.boot.kernel = "/nonexistent/kernel".into());
    assert_eq!(missing, "cannot open kernel /nonexistent/kernel");
    let text = refused(&|config| config.boot.kernel = "/proc/self/maps".into());
    assert_eq!(text, "/proc/self/maps is not a kernel: neither a bzImage nor an ELF file");
    let disk = vmm::DiskConfig { path: "/nonexistent/disk".into(), read_only: true };
    assert!(refused(&|config| config.disks = vec![disk.clone()]).contains("/nonexistent/disk"));
    let console = vmm::ConsoleConfig::File("/nonexistent/console".into());
    assert_eq!(refused(&|config| config.console = console.clone()), "cannot write console file /nonexistent/console");
    let small = refused(&|config| config.memory = 1 << 20);
    assert!(small.contains("needs guest memory from 0x200000") && small.contains("1 MiB"), "{small}");
}
