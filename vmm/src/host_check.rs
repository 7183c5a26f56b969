//! What this host's KVM can do, for people who want to know before they start a guest.
//!
//! Promises: asks and measures, changes nothing; ends within a fraction of a second. Must never: refuse a host for being slow; it tells.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
use kvm_ioctls::{Cap, Kvm, VcpuExit, VcpuFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::boot::{Entry, tables};
use crate::kvm::dirty::Offer;
use crate::kvm::{self, Vm, capability};
use crate::memory::{GuestRam, layout};
use crate::vcpu::registers;

pub use crate::kvm::KvmError;
pub use crate::memory::MemoryError;

/// What KVM said.
#[derive(Debug)]
pub struct KvmProbe {
    /// Its interface's version; always 12.
    pub api_version: i32,
    /// Everything that a machine needs, present or not.
    pub capabilities: Vec<CapabilityProbe>,
    /// The most vCPUs of one guest.
    pub max_vcpus: usize,
    /// The largest dirty ring per vCPU in bytes, if KVM has dirty rings.
    pub dirty_ring_bytes: Option<u32>,
    /// Whether the dirty log is a bitmap that can be cleared piece by piece and is all set at first (manual protection).
    pub dirty_log_manual: bool,
    /// Whether guests can get machine checks, which is how they learn of a lost page.
    pub machine_checks: bool,
    /// How guest kernel mode runs, or why that could not be measured.
    pub kernel_mode: Result<KernelMode, ProbeError>,
}

impl KvmProbe {
    /// The needed capabilities that are missing.
    pub fn missing(&self) -> impl Iterator<Item = &CapabilityProbe> {
        self.capabilities.iter().filter(|capability| !capability.present)
    }
}

/// One capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CapabilityProbe {
    /// Its name in KVM's interface.
    pub name: &'static str,
    /// What it is needed for.
    pub purpose: &'static str,
    /// Whether it is there.
    pub present: bool,
}

/// How the guest's kernel mode (CPL 0) runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KernelMode {
    /// One simple instruction in nanoseconds, the least of some runs.
    pub instruction_ns: f64,
}

impl KernelMode {
    /// A processor takes less than a nanosecond, one emulated in software some tens; KVM's emulator takes hundreds and does not know every
    /// instruction.
    const EMULATED_FROM_NS: f64 = 150.0;

    /// Whether KVM emulates it instruction by instruction: an ordinary Linux kernel does not boot then.
    pub fn is_emulated(&self) -> bool {
        self.instruction_ns >= Self::EMULATED_FROM_NS
    }
}

/// Why kernel mode could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// A call failed.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// No memory for the probe's guest.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The probe's guest could not be written.
    #[error("cannot write the probe's guest")]
    Write(#[source] GuestMemoryError),
    /// The probe's guest did something else than count.
    #[error("the probe's guest left with {exit}")]
    Exit {
        /// What KVM said.
        exit: String,
    },
}

/// Opens KVM and asks it everything. An error says why it cannot be used at all.
pub fn kvm_probe() -> Result<KvmProbe, KvmError> {
    let kvm = kvm::open()?;
    let probe = |needed: &capability::Needed| CapabilityProbe {
        name: needed.name,
        purpose: needed.purpose,
        present: kvm.check_extension(needed.capability),
    };
    let number = |capability| u32::try_from(kvm.check_extension_int(capability)).ok().filter(|number| *number > 0);
    let dirty_log = Offer::new(&kvm);
    Ok(KvmProbe {
        api_version: kvm.get_api_version(),
        capabilities: capability::NEEDED.iter().map(probe).collect(),
        max_vcpus: kvm.get_max_vcpus(),
        dirty_ring_bytes: dirty_log.ring_bytes(),
        dirty_log_manual: dirty_log.bitmap,
        machine_checks: number(Cap::Mce).is_some(),
        kernel_mode: measure_kernel_mode(&kvm),
    })
}

/// Counts `ESI` down to zero in kernel mode, writes to a port, and again.
const COUNTER: [u8; 10] = [
    0x89, 0xf1, // mov ecx, esi
    0xff, 0xc9, // dec ecx
    0x75, 0xfc, // jnz -4
    0xe6, 0x80, // out 0x80, al
    0xeb, 0xf6, // jmp to the start
];
const COUNTER_AT: u64 = layout::HIGH_RAM_START;

fn measure_kernel_mode(kvm: &Kvm) -> Result<KernelMode, ProbeError> {
    const LOOPS: u64 = 1000;
    const INSTRUCTIONS: f64 = 2.0 * 999.0;
    let ram = Arc::new(GuestRam::new(2 << 20, memtier::status::HugePages::Off)?);
    tables::write_to(ram.handle()).map_err(ProbeError::Write)?;
    ram.handle().write_slice(&COUNTER, GuestAddress(COUNTER_AT)).map_err(ProbeError::Write)?;
    let vm = Vm::new(kvm, ram)?;
    let mut vcpu = vm.create_vcpu(0)?;
    // A vCPU without CPUID has no long mode: KVM on real hardware refuses the registers below then.
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(KvmError::call("KVM_GET_SUPPORTED_CPUID"))?;
    vcpu.set_cpuid2(&cpuid).map_err(KvmError::call("KVM_SET_CPUID2"))?;
    let mut sregs = vcpu.get_sregs().map_err(KvmError::call("KVM_GET_SREGS"))?;
    registers::special(Entry::EveryVcpu { rip: COUNTER_AT }, &mut sregs);
    vcpu.set_sregs(&sregs).map_err(KvmError::call("KVM_SET_SREGS"))?;
    // The first trip pays for page tables, and what a trip with next to nothing to count takes is not the counting's.
    run(&mut vcpu, 1)?;
    let trip = least(&mut vcpu, 1)?;
    let counting = least(&mut vcpu, LOOPS)?;
    let instruction_ns = counting.saturating_sub(trip).as_secs_f64() * 1e9 / INSTRUCTIONS;
    Ok(KernelMode { instruction_ns })
}

/// The least time of some runs: whatever else the host does makes a run longer, never shorter.
fn least(vcpu: &mut VcpuFd, count: u64) -> Result<Duration, ProbeError> {
    const RUNS: usize = 5;
    const ENOUGH: Duration = Duration::from_millis(100);
    let begin = Instant::now();
    let mut least = run(vcpu, count)?;
    for _ in 1..RUNS {
        if begin.elapsed() > ENOUGH {
            break;
        }
        least = least.min(run(vcpu, count)?);
    }
    Ok(least)
}

fn run(vcpu: &mut VcpuFd, count: u64) -> Result<Duration, ProbeError> {
    let mut regs = registers::general(Entry::EveryVcpu { rip: COUNTER_AT }, 0, 0);
    regs.rsi = count;
    vcpu.set_regs(&regs).map_err(KvmError::call("KVM_SET_REGS"))?;
    let begin = Instant::now();
    loop {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(..)) => return Ok(begin.elapsed()),
            Ok(exit) => return Err(ProbeError::Exit { exit: format!("{exit:?}") }),
            Err(error) if error.errno() == libc::EINTR => {}
            Err(error) => return Err(KvmError::call("KVM_RUN")(error).into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_has_all_that_is_needed_and_kernel_mode_is_measured() {
        let probe = kvm_probe().expect("KVM");
        assert_eq!(probe.missing().count(), 0, "{probe:?}");
        assert_eq!(probe.api_version, 12);
        let mode = probe.kernel_mode.expect("measured");
        assert!(mode.instruction_ns >= 0.0 && mode.instruction_ns < 100_000.0, "{mode:?}");
    }

    #[test]
    fn the_verdict_depends_on_the_time_per_instruction() {
        assert!(!KernelMode { instruction_ns: 0.3 }.is_emulated());
        assert!(!KernelMode { instruction_ns: 60.0 }.is_emulated());
        assert!(KernelMode { instruction_ns: 800.0 }.is_emulated());
    }
}
