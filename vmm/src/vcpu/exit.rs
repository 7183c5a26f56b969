//! What KVM says when it leaves the guest, beyond what the wrapper crate tells.
//!
//! Raw reads of the page shared with KVM, whose unions the exit reason makes valid.
//!
//! Promises: reads only what the last exit filled in. Must never: be asked after another entry.

use std::fmt::Write;

use kvm_bindings::{KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_IO};
use kvm_ioctls::VcpuFd;

/// Bytes per access of the last port I/O exit: a string instruction makes one exit of several accesses.
pub fn port_access_size(vcpu: &mut VcpuFd) -> usize {
    let run = vcpu.get_kvm_run();
    if run.exit_reason != KVM_EXIT_IO {
        return 1;
    }
    // SAFETY: the exit reason says that the kernel filled in this member.
    let size = unsafe { run.__bindgen_anon_1.io.size };
    usize::from(size).max(1)
}

/// The last internal error in words.
pub fn internal_error(vcpu: &mut VcpuFd) -> String {
    const EMULATION: u32 = 1;
    const SIMULTANEOUS: u32 = 2;
    const DELIVERY: u32 = 3;
    const UNEXPECTED_EXIT: u32 = 4;
    let run = vcpu.get_kvm_run();
    if run.exit_reason != KVM_EXIT_INTERNAL_ERROR {
        return "KVM reported an internal error".into();
    }
    // SAFETY: the exit reason says that the kernel filled in this member.
    let (suberror, count, data) = unsafe {
        let internal = run.__bindgen_anon_1.internal;
        (internal.suberror, internal.ndata, internal.data)
    };
    let mut text = match suberror {
        EMULATION => "KVM could not emulate an instruction".to_owned(),
        SIMULTANEOUS => "KVM met an exception while delivering another".to_owned(),
        DELIVERY => "KVM could not deliver an event".to_owned(),
        UNEXPECTED_EXIT => "KVM met an exit reason that it does not know".to_owned(),
        other => format!("KVM internal error {other}"),
    };
    // The page may hold anything: trust no count in it.
    let known = data.len().min(usize::try_from(count).unwrap_or(0));
    for word in &data[..known] {
        // Writing to a string cannot fail.
        let _ = write!(text, " {word:#x}");
    }
    text + &location(vcpu)
}

/// Where the vCPU stands, for messages.
pub fn location(vcpu: &VcpuFd) -> String {
    vcpu.get_regs().map_or_else(|_| String::new(), |regs| format!(" at rip {:#x}", regs.rip))
}
