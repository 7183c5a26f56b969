//! Machine checks, for pages that could not be brought back.
//!
//! Raw ioctls, because the wrapper crate has none for them. Numbers from `include/uapi/linux/kvm.h`.
//!
//! Promises: an injected check says "data load, recoverable, this page" in the terms of the guest's vendor. Must never: inject into a guest
//! that takes none; that would be a triple fault without a reason.

use kvm_bindings::{KVMIO, Msrs, kvm_msr_entry, kvm_x86_mce};
use kvm_ioctls::{Cap, Kvm, VcpuFd};
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};
use vmm_sys_util::{errno, ioctl_ior_nr, ioctl_iow_nr};

use super::KvmError;

ioctl_ior_nr!(KVM_X86_GET_MCE_CAP_SUPPORTED, KVMIO, 0x9d, u64);
ioctl_iow_nr!(KVM_X86_SETUP_MCE, KVMIO, 0x9c, u64);
ioctl_iow_nr!(KVM_X86_SET_MCE, KVMIO, 0x9e, kvm_x86_mce);

/// Banks that the guest sees; [`BANK`] is the last. Real processors have about as many.
const BANKS: u64 = 10;
/// The bank that reports our checks: high enough to be none with a meaning of its own.
const BANK: u8 = 9;

/// Bits of `IA32_MCG_CAP`: a control register, and software error recovery.
const MCG_CTL_P: u64 = 1 << 8;
const MCG_SER_P: u64 = 1 << 24;

const MSR_MCG_STATUS: u32 = 0x17a;
const MSR_MCG_CTL: u32 = 0x17b;
const MSR_MC0_CTL: u32 = 0x400;
const CR4_MCE: u64 = 1 << 6;

/// Bits of `IA32_MCi_STATUS`.
mod status {
    pub const VALID: u64 = 1 << 63;
    pub const UNCORRECTED: u64 = 1 << 61;
    pub const ENABLED: u64 = 1 << 60;
    pub const MISC_VALID: u64 = 1 << 59;
    pub const ADDRESS_VALID: u64 = 1 << 58;
    /// Intel: signalled as a machine check.
    pub const SIGNALLED: u64 = 1 << 56;
    /// Intel: action required.
    pub const ACTION_REQUIRED: u64 = 1 << 55;
    /// AMD: poisoned data was consumed.
    pub const POISON: u64 = 1 << 43;
    /// Error code: data cache, load.
    pub const DATA_LOAD: u64 = 0x134;
}

/// Bits of `IA32_MCG_STATUS`: restart possible, instruction known, in progress.
mod global {
    pub const RESTART_VALID: u64 = 1 << 0;
    pub const INSTRUCTION_VALID: u64 = 1 << 1;
    pub const IN_PROGRESS: u64 = 1 << 2;
}

/// `IA32_MCi_MISC`: the address is a physical one, good down to 4 KiB.
const MISC_PHYSICAL_PAGE: u64 = 2 << 6 | 12;

/// Whether and how this host's KVM gives guests machine checks.
#[derive(Clone, Copy, Debug)]
pub struct MachineCheckSupport {
    capabilities: u64,
    intel: bool,
}

impl MachineCheckSupport {
    /// What `kvm` offers a guest that sees a processor of this vendor (`intel` or not); `None` if nothing.
    pub fn new(kvm: &Kvm, intel: bool) -> Result<Option<Self>, KvmError> {
        if kvm.check_extension_int(Cap::Mce) <= 0 {
            return Ok(None);
        }
        let mut supported = 0u64;
        // SAFETY: the kernel writes one u64 to where the reference points.
        if unsafe { ioctl_with_mut_ref(kvm, KVM_X86_GET_MCE_CAP_SUPPORTED(), &mut supported) } != 0 {
            return Err(KvmError::call("KVM_X86_GET_MCE_CAP_SUPPORTED")(errno::Error::last()));
        }
        let most = u64::try_from(kvm.check_extension_int(Cap::Mce)).unwrap_or(0);
        if most < BANKS {
            return Ok(None);
        }
        Ok(Some(Self { capabilities: BANKS | supported & (MCG_CTL_P | MCG_SER_P), intel }))
    }

    /// Gives the vCPU its banks.
    pub fn set_up(&self, vcpu: &VcpuFd) -> Result<(), KvmError> {
        // SAFETY: the kernel reads one u64 from where the reference points.
        match unsafe { ioctl_with_ref(vcpu, KVM_X86_SETUP_MCE(), &self.capabilities) } {
            0 => Ok(()),
            _ => Err(KvmError::call("KVM_X86_SETUP_MCE")(errno::Error::last())),
        }
    }

    /// What became of a machine check for the page at `gpa`. The vCPU must not be running.
    pub fn inject(&self, vcpu: &VcpuFd, gpa: u64, restart: Restart) -> Result<MachineCheck, KvmError> {
        if !self.takes_checks(vcpu)? {
            return Ok(MachineCheck::NotTaken);
        }
        let event = self.event(gpa, restart);
        // SAFETY: the kernel reads one `kvm_x86_mce` from where the reference points.
        match unsafe { ioctl_with_ref(vcpu, KVM_X86_SET_MCE(), &event) } {
            0 => Ok(MachineCheck::Injected),
            _ => Err(KvmError::call("KVM_X86_SET_MCE")(errno::Error::last())),
        }
    }

    /// Whether the guest has machine checks on and none in progress: otherwise KVM drops ours, or ends the guest without a word.
    fn takes_checks(&self, vcpu: &VcpuFd) -> Result<bool, KvmError> {
        let sregs = vcpu.get_sregs().map_err(KvmError::call("KVM_GET_SREGS"))?;
        if sregs.cr4 & CR4_MCE == 0 {
            return Ok(false);
        }
        let in_progress = read_msr(vcpu, MSR_MCG_STATUS)? & global::IN_PROGRESS != 0;
        let bank_on = read_msr(vcpu, MSR_MC0_CTL + 4 * u32::from(BANK))? == u64::MAX;
        let all_on = self.capabilities & MCG_CTL_P == 0 || read_msr(vcpu, MSR_MCG_CTL)? == u64::MAX;
        Ok(bank_on && all_on && !in_progress)
    }

    fn event(&self, gpa: u64, restart: Restart) -> kvm_x86_mce {
        let vendor = match self.intel {
            true => status::SIGNALLED | status::ACTION_REQUIRED | status::DATA_LOAD,
            false => status::POISON,
        };
        let restart = if restart == Restart::Possible { global::RESTART_VALID } else { 0 };
        kvm_x86_mce {
            status: status::VALID
                | status::UNCORRECTED
                | status::ENABLED
                | status::MISC_VALID
                | status::ADDRESS_VALID
                | vendor,
            addr: gpa,
            misc: MISC_PHYSICAL_PAGE,
            mcg_status: restart | global::INSTRUCTION_VALID | global::IN_PROGRESS,
            bank: BANK,
            ..Default::default()
        }
    }
}

/// Whether the instruction that met the error can be executed again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    /// It has done nothing yet.
    Possible,
    /// It will be completed with wrong data.
    Impossible,
}

/// What became of a machine check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineCheck {
    /// The guest gets it with its next instruction.
    Injected,
    /// The guest has machine checks off, or is in the middle of one.
    NotTaken,
}

fn read_msr(vcpu: &VcpuFd, index: u32) -> Result<u64, KvmError> {
    let mut msrs = Msrs::from_entries(&[kvm_msr_entry { index, ..Default::default() }]).expect("one entry");
    match vcpu.get_msrs(&mut msrs).map_err(KvmError::call("KVM_GET_MSRS"))? {
        1 => Ok(msrs.as_slice()[0].data),
        _ => Ok(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ioctl_numbers_are_the_kernels() {
        assert_eq!(KVM_X86_SETUP_MCE(), 0x4008_ae9c);
        assert_eq!(KVM_X86_GET_MCE_CAP_SUPPORTED(), 0x8008_ae9d);
        assert_eq!(KVM_X86_SET_MCE(), 0x4040_ae9e);
    }

    #[test]
    fn checks_speak_the_vendors_language() {
        let support = |intel| MachineCheckSupport { capabilities: BANKS | MCG_CTL_P | MCG_SER_P, intel };
        let intel = support(true).event(0x1234_5000, Restart::Possible);
        assert_eq!((intel.status, intel.addr), (0xbd80_0000_0000_0134, 0x1234_5000));
        assert_eq!((intel.mcg_status, intel.misc, intel.bank), (7, 0x8c, 9));
        let amd = support(false).event(0x1234_5000, Restart::Impossible);
        assert_eq!((amd.status, amd.mcg_status), (0xbc00_0800_0000_0000, 6));
    }
}
