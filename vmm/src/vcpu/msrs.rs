//! Model-specific registers at the start.
//!
//! Promises: only those that this host's KVM lists are written. Must never: write one whose value KVM keeps better itself.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};

use crate::kvm::KvmError;

/// Memory is write-back unless the guest says otherwise: default type 6, ranges on.
const MTRR_DEF_TYPE: (u32, u64) = (0x2ff, 1 << 11 | 6);

/// All that a kernel expects to find in a defined state: system call entries off, counter at zero, fast string instructions on.
const AT_START: [(u32, u64); 11] = [
    (0x174, 0),       // IA32_SYSENTER_CS
    (0x175, 0),       // IA32_SYSENTER_ESP
    (0x176, 0),       // IA32_SYSENTER_EIP
    (0xc000_0081, 0), // STAR
    (0xc000_0082, 0), // LSTAR
    (0xc000_0083, 0), // CSTAR
    (0xc000_0084, 0), // SYSCALL_MASK
    (0xc000_0102, 0), // KERNEL_GS_BASE
    (0x10, 0),        // IA32_TSC
    (0x1a0, 1),       // IA32_MISC_ENABLE: fast strings
    MTRR_DEF_TYPE,
];

/// The registers of [`AT_START`] that this host's KVM has.
pub struct BootMsrs {
    msrs: Msrs,
}

impl BootMsrs {
    /// Asks `kvm` which it has.
    pub fn new(kvm: &Kvm) -> Result<Self, KvmError> {
        let list = kvm.get_msr_index_list().map_err(KvmError::call("KVM_GET_MSR_INDEX_LIST"))?;
        Ok(Self { msrs: entries(list.as_slice()) })
    }

    /// Writes them.
    pub fn write(&self, vcpu: &VcpuFd) -> Result<(), KvmError> {
        let written = vcpu.set_msrs(&self.msrs).map_err(KvmError::call("KVM_SET_MSRS"))?;
        if written < self.msrs.as_slice().len() {
            let refused = self.msrs.as_slice()[written].index;
            tracing::warn!("KVM refused MSR {refused:#x} although it lists it");
        }
        Ok(())
    }
}

fn entries(known: &[u32]) -> Msrs {
    // KVM has always virtualised the default memory type, but older versions do not list it.
    let listed = |index| index == MTRR_DEF_TYPE.0 || known.contains(&index);
    let entries: Vec<_> = AT_START
        .into_iter()
        .filter(|(index, _)| listed(*index))
        .map(|(index, data)| kvm_msr_entry { index, data, ..Default::default() })
        .collect();
    Msrs::from_entries(&entries).expect("a handful of registers")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listed_registers_are_written() {
        let indices: Vec<_> = entries(&[0x174, 0x10, 0xdead]).as_slice().iter().map(|entry| entry.index).collect();
        assert_eq!(indices, [0x174, 0x10, 0x2ff]);
    }
}
