//! The payload image: a bare guest that runs memory workloads in ring 3 at full speed, commanded over I/O ports and a mailbox page.
//!
//! Promises: touches workload memory only as a command says; reports exceptions and panics over the ports, then waits for the next
//! command. Must never: need an interrupt, a timer or any device but its ports.
#![no_std]
#![no_main]
#![deny(missing_docs, unsafe_op_in_unsafe_fn)]

pub mod abi;
pub mod access_loop;
pub mod fill;
pub mod libc_mem;
pub mod mailbox;
pub mod memory;
pub mod pattern;
pub mod port;
pub mod rng;
pub mod soak;
pub mod touch;

use abi::command;
use mailbox::Mailbox;

core::arch::global_asm!(
    include_str!("boot.s"),
    max_vcpus = const abi::MAX_VCPUS,
    layout_page = const abi::LAYOUT_PAGE,
    directories = const abi::ADDRESS_LIMIT >> 30,
    ring3_stack = const abi::RING3_STACK_BYTES,
    data_port = const abi::PORT_BASE + abi::PORT_DATA,
    doorbell_offset = const abi::PORT_DOORBELL as i32 - abi::PORT_DATA as i32,
    exception_event = const abi::event::EXCEPTION,
);

/// Ring 3 begins here, for every vCPU, and again after an exception.
#[unsafe(no_mangle)]
extern "C" fn ring3_main(vcpu: u64) -> ! {
    let ports = port::Ports::of(vcpu);
    let mailbox = Mailbox::of(vcpu);
    ports.announce(abi::event::READY);
    loop {
        if ports.command_waits() {
            run(vcpu, &mailbox, &ports);
            ports.announce(abi::event::DONE);
        }
    }
}

/// Runs the command in the mailbox and leaves its results there.
fn run(vcpu: u64, mailbox: &Mailbox, ports: &port::Ports) {
    let args = mailbox.args();
    match mailbox.command() {
        command::TOUCH => touch::touch(mailbox, &args),
        command::FILL => fill::fill(mailbox, &args),
        command::VERIFY => fill::verify(mailbox, ports, &args),
        command::SOAK => soak::Soak::new(vcpu, mailbox, ports, &args).run(),
        command::AUDIT => soak::Soak::new(vcpu, mailbox, ports, &args).audit(),
        command::HAMMER => soak::hammer::hammer(mailbox, ports, &args),
        command::LOOP => access_loop::run(mailbox, &args),
        unknown => panic!("command {unknown}"),
    }
}

/// Reports the line and starts over: the exception that `ud2` raises brings the vCPU back to [`ring3_main`].
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    let ports = port::Ports::of_this_stack();
    ports.data(info.location().map_or(0, |location| location.line()));
    ports.announce(abi::event::PANIC);
    // SAFETY: raises #UD, which the boot code handles without coming back here.
    unsafe { core::arch::asm!("ud2", options(noreturn)) }
}

/// Named by the precompiled `core`, never called: nothing unwinds here.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
