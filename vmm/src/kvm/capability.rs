//! Which of KVM's capabilities are needed, and what for.
//!
//! Promises: [`check`] names the first one that is missing. Must never: list what nothing uses.

use kvm_ioctls::{Cap, Kvm};

use super::KvmError;

/// One capability.
#[derive(Clone, Copy, Debug)]
pub struct Needed {
    /// KVM's number for it.
    pub capability: Cap,
    /// Its name in KVM's interface.
    pub name: &'static str,
    /// What it is for.
    pub purpose: &'static str,
}

/// All that a machine needs.
pub const NEEDED: [Needed; 10] = [
    Needed { capability: Cap::UserMemory, name: "KVM_CAP_USER_MEMORY", purpose: "guest memory" },
    Needed { capability: Cap::Irqchip, name: "KVM_CAP_IRQCHIP", purpose: "interrupt controllers" },
    Needed { capability: Cap::IrqRouting, name: "KVM_CAP_IRQ_ROUTING", purpose: "interrupt lines" },
    Needed { capability: Cap::Irqfd, name: "KVM_CAP_IRQFD", purpose: "device interrupts" },
    Needed { capability: Cap::Ioeventfd, name: "KVM_CAP_IOEVENTFD", purpose: "virtio notifications" },
    Needed { capability: Cap::SetTssAddr, name: "KVM_CAP_SET_TSS_ADDR", purpose: "real mode" },
    Needed {
        capability: Cap::SetIdentityMapAddr,
        name: "KVM_CAP_SET_IDENTITY_MAP_ADDR",
        purpose: "guests without paging",
    },
    Needed { capability: Cap::ExtCpuid, name: "KVM_CAP_EXT_CPUID", purpose: "the guest's CPU features" },
    Needed { capability: Cap::MpState, name: "KVM_CAP_MP_STATE", purpose: "starting vCPUs" },
    Needed { capability: Cap::ImmediateExit, name: "KVM_CAP_IMMEDIATE_EXIT", purpose: "pausing vCPUs" },
];

/// An error that names the first missing capability.
pub fn check(kvm: &Kvm) -> Result<(), KvmError> {
    match NEEDED.iter().find(|needed| !kvm.check_extension(needed.capability)) {
        Some(Needed { name, purpose, .. }) => Err(KvmError::Missing { name, purpose }),
        None => Ok(()),
    }
}
