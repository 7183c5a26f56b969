//! Making vCPUs: all of a start's state into KVM.
//!
//! Promises: what [`create`] returns can run. Must never: run it.

use kvm_bindings::{KVM_MP_STATE_RUNNABLE, kvm_mp_state};
use kvm_ioctls::{Kvm, VcpuFd};

use super::cpuid::CpuTemplate;
use super::msrs::BootMsrs;
use super::registers;
use crate::boot::Entry;
use crate::kvm::{KvmError, MachineCheckSupport, Vm};

/// What all vCPUs of a machine are made from.
pub struct Blueprint {
    cpuid: CpuTemplate,
    msrs: BootMsrs,
    machine_checks: Option<MachineCheckSupport>,
}

impl Blueprint {
    /// Asks `kvm` what it offers.
    pub fn new(kvm: &Kvm, cpus: u8) -> Result<Self, KvmError> {
        let limit = kvm.get_max_vcpus();
        if usize::from(cpus) > limit {
            return Err(KvmError::Cpus { cpus, limit });
        }
        let cpuid = CpuTemplate::new(kvm, cpus)?;
        let machine_checks = MachineCheckSupport::new(kvm, cpuid.is_intel())?;
        Ok(Self { cpuid, msrs: BootMsrs::new(kvm)?, machine_checks })
    }

    /// How guests get machine checks here.
    pub fn machine_checks(&self) -> Option<MachineCheckSupport> {
        self.machine_checks
    }

    /// vCPU `index`, ready at `entry`.
    pub fn create(&self, vm: &Vm, index: u8, entry: Entry, memory: u64) -> Result<VcpuFd, KvmError> {
        let vcpu = vm.create_vcpu(index)?;
        vcpu.set_cpuid2(&self.cpuid.for_vcpu(index)?).map_err(KvmError::call("KVM_SET_CPUID2"))?;
        if let Some(machine_checks) = self.machine_checks {
            machine_checks.set_up(&vcpu)?;
        }
        run_at_host_tsc_rate(&vcpu);
        self.msrs.write(&vcpu)?;
        let mut lapic = vcpu.get_lapic().map_err(KvmError::call("KVM_GET_LAPIC"))?;
        registers::local_interrupts(&mut lapic);
        vcpu.set_lapic(&lapic).map_err(KvmError::call("KVM_SET_LAPIC"))?;
        let every = matches!(entry, Entry::EveryVcpu { .. });
        // Other vCPUs of a Linux guest wait for its SIPI, as after a reset; whatever is in their registers then does not count.
        if index == 0 || every {
            start_at(&vcpu, entry, index, memory)?;
        }
        Ok(vcpu)
    }
}

/// Gives the vCPU the rate at which the host's time stamp counter runs now.
///
/// By default KVM takes the rate that was known when its module was loaded. On a host whose kernel has corrected its idea of the rate since,
/// and whose processor cannot scale, KVM finds the two too far apart and leaves the vCPU with a scaling factor of zero: its counter stands
/// still for KVM, and its deadline timer never fires. To be done before the counter is set.
fn run_at_host_tsc_rate(vcpu: &VcpuFd) {
    const HOST_RATE: u32 = 0;
    if let Err(error) = vcpu.set_tsc_khz(HOST_RATE) {
        // Not every host can; then the default is as good as it gets.
        tracing::debug!("KVM_SET_TSC_KHZ refused: {error}");
    }
}

fn start_at(vcpu: &VcpuFd, entry: Entry, index: u8, memory: u64) -> Result<(), KvmError> {
    let mut sregs = vcpu.get_sregs().map_err(KvmError::call("KVM_GET_SREGS"))?;
    registers::special(entry, &mut sregs);
    vcpu.set_sregs(&sregs).map_err(KvmError::call("KVM_SET_SREGS"))?;
    vcpu.set_fpu(&registers::floating_point()).map_err(KvmError::call("KVM_SET_FPU"))?;
    vcpu.set_regs(&registers::general(entry, index, memory)).map_err(KvmError::call("KVM_SET_REGS"))?;
    let runnable = kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE };
    vcpu.set_mp_state(runnable).map_err(KvmError::call("KVM_SET_MP_STATE"))
}
