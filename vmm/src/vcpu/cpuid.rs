//! What the guest's processor says about itself: everything that KVM supports, with the machine's own topology.
//!
//! Promises: one socket, one thread per core, as many cores as vCPUs, APIC id = vCPU index, told alike by every leaf that tells it. Must
//! never: announce what KVM does not support, except what KVM itself asks its user to add (TSC deadline) and what this machine does in
//! software (AMD's recoverable machine checks).

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};

use crate::kvm::KvmError;

const VENDOR: u32 = 0;
const FEATURES: u32 = 1;
const CACHES: u32 = 4;
const TOPOLOGY: u32 = 0xb;
const TOPOLOGY_V2: u32 = 0x1f;
const AMD_POWER: u32 = 0x8000_0007;
const AMD_SIZES: u32 = 0x8000_0008;
const AMD_CACHES: u32 = 0x8000_001d;
const AMD_TOPOLOGY: u32 = 0x8000_001e;
const AMD_TOPOLOGY_V2: u32 = 0x8000_0026;

const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
const HYPER_THREADING: u32 = 1 << 28;
/// AMD: overflow recovery, and software-uncorrectable error containment and recovery.
const AMD_RECOVERABLE: u32 = 0b11;

/// What all vCPUs of a machine have in common.
pub struct CpuTemplate {
    entries: Vec<kvm_cpuid_entry2>,
    cpus: u8,
    tsc_deadline: bool,
}

impl CpuTemplate {
    /// What `kvm` supports, for a machine of `cpus`.
    pub fn new(kvm: &Kvm, cpus: u8) -> Result<Self, KvmError> {
        let supported =
            kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(KvmError::call("KVM_GET_SUPPORTED_CPUID"))?;
        let tsc_deadline = kvm.check_extension(Cap::TscDeadlineTimer);
        Ok(Self { entries: supported.as_slice().to_vec(), cpus, tsc_deadline })
    }

    /// Whether the processor calls itself an Intel one.
    pub fn is_intel(&self) -> bool {
        self.entries.iter().any(|entry| {
            entry.function == VENDOR
                && [entry.ebx, entry.edx, entry.ecx] == [*b"Genu", *b"ineI", *b"ntel"].map(u32::from_le_bytes)
        })
    }

    /// The leaves of vCPU `index`.
    pub fn for_vcpu(&self, index: u8) -> Result<CpuId, KvmError> {
        let intel = self.is_intel();
        let replaced = [TOPOLOGY, TOPOLOGY_V2, AMD_TOPOLOGY_V2];
        let mut entries: Vec<_> =
            self.entries.iter().filter(|entry| !replaced.contains(&entry.function)).copied().collect();
        for entry in &mut entries {
            self.adjust(entry, index, intel);
        }
        let highest = self.entries.iter().find(|entry| entry.function == VENDOR).map_or(0, |entry| entry.eax);
        for leaf in [TOPOLOGY, TOPOLOGY_V2] {
            if leaf <= highest {
                entries.extend(self.topology(leaf, index));
            }
        }
        let too_many =
            |_| KvmError::Call { call: "KVM_SET_CPUID2", source: std::io::Error::from_raw_os_error(libc::E2BIG) };
        CpuId::from_entries(&entries).map_err(too_many)
    }

    fn adjust(&self, entry: &mut kvm_cpuid_entry2, index: u8, intel: bool) {
        let (index, cpus) = (u32::from(index), u32::from(self.cpus));
        match entry.function {
            FEATURES => {
                entry.ebx = entry.ebx & 0xffff | cpus.next_power_of_two() << 16 | index << 24;
                entry.ecx |= HYPERVISOR;
                set(&mut entry.ecx, TSC_DEADLINE, self.tsc_deadline);
                set(&mut entry.edx, HYPER_THREADING, cpus > 1);
            }
            CACHES if intel => {
                let cores = cpus.next_power_of_two() - 1;
                entry.eax = entry.eax & !(0x3f << 26 | 0xfff << 14) | cores << 26 | self.sharers(entry.eax) << 14;
            }
            AMD_POWER if !intel => entry.ebx |= AMD_RECOVERABLE,
            AMD_SIZES if !intel => {
                entry.ecx = entry.ecx & !0xf0ff | self.id_bits() << 12 | (cpus - 1);
            }
            AMD_CACHES => entry.eax = entry.eax & !(0xfff << 14) | self.sharers(entry.eax) << 14,
            AMD_TOPOLOGY => (entry.eax, entry.ebx, entry.ecx) = (index, index, 0),
            _ => {}
        }
    }

    /// How many vCPUs share the cache that `eax` of a cache leaf describes, minus one: all of them the third level, each alone the others.
    fn sharers(&self, eax: u32) -> u32 {
        const KIND: u32 = 0x1f;
        let level = eax >> 5 & 7;
        match eax & KIND != 0 && level >= 3 {
            true => u32::from(self.cpus).next_power_of_two() - 1,
            false => 0,
        }
    }

    /// Bits of an APIC id that tell cores apart.
    fn id_bits(&self) -> u32 {
        u32::from(self.cpus).next_power_of_two().trailing_zeros()
    }

    /// Subleaves of an extended topology leaf: threads, cores, end.
    fn topology(&self, leaf: u32, index: u8) -> [kvm_cpuid_entry2; 3] {
        const THREADS: u32 = 1;
        const CORES: u32 = 2;
        let level = |subleaf: u32, shift: u32, count: u32, kind: u32| kvm_cpuid_entry2 {
            function: leaf,
            index: subleaf,
            flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax: shift,
            ebx: count,
            ecx: kind << 8 | subleaf,
            edx: u32::from(index),
            ..Default::default()
        };
        [level(0, 0, 1, THREADS), level(1, self.id_bits(), u32::from(self.cpus), CORES), level(2, 0, 0, 0)]
    }
}

fn set(register: &mut u32, bits: u32, on: bool) {
    if on {
        *register |= bits;
    } else {
        *register &= !bits;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = registers;
        kvm_cpuid_entry2 { function, eax, ebx, ecx, edx, ..Default::default() }
    }

    fn template(vendor: &[u8; 12], cpus: u8, more: &[kvm_cpuid_entry2]) -> CpuTemplate {
        let word = |at: usize| u32::from_le_bytes(vendor[at..at + 4].try_into().expect("four bytes"));
        let mut entries =
            vec![entry(VENDOR, [0x1f, word(0), word(8), word(4)]), entry(FEATURES, [0, 0x0fab_0800, 0, 0])];
        entries.extend_from_slice(more);
        CpuTemplate { entries, cpus, tsc_deadline: true }
    }

    fn find(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        *cpuid.as_slice().iter().find(|e| (e.function, e.index) == (function, index)).expect("leaf")
    }

    #[test]
    fn every_leaf_tells_the_same_topology() {
        let l2 = entry(CACHES, [2 << 5 | 3 | 63 << 26 | 1 << 14, 0, 0, 0]);
        let l3 = kvm_cpuid_entry2 { index: 3, ..entry(CACHES, [3 << 5 | 3 | 63 << 26 | 127 << 14, 0, 0, 0]) };
        let stale = entry(TOPOLOGY, [9, 9, 9, 9]);
        let template = template(b"GenuineIntel", 6, &[l2, l3, stale]);
        let cpuid = template.for_vcpu(5).expect("leaves");
        let features = find(&cpuid, FEATURES, 0);
        assert_eq!(features.ebx, 0x0508_0800);
        assert_eq!(features.ecx & (HYPERVISOR | TSC_DEADLINE), HYPERVISOR | TSC_DEADLINE);
        assert_ne!(features.edx & HYPER_THREADING, 0);
        for leaf in [TOPOLOGY, TOPOLOGY_V2] {
            let (threads, cores) = (find(&cpuid, leaf, 0), find(&cpuid, leaf, 1));
            assert_eq!((threads.eax, threads.ebx, threads.ecx, threads.edx), (0, 1, 0x100, 5));
            assert_eq!((cores.eax, cores.ebx, cores.ecx, cores.edx), (3, 6, 0x201, 5));
        }
        assert_eq!(find(&cpuid, CACHES, 0).eax >> 14, 7 << 12, "second level: eight ids for cores, not shared");
        assert_eq!(find(&cpuid, CACHES, 3).eax >> 14, 7 << 12 | 7, "third level: shared by all");
    }

    #[test]
    fn amd_leaves_tell_it_too() {
        let more = [
            entry(AMD_POWER, [0, 0, 0, 1 << 8]),
            entry(AMD_SIZES, [0x3030, 0, 0xf0ff, 0]),
            entry(AMD_TOPOLOGY, [77, 0x1ff, 5, 0]),
            entry(AMD_TOPOLOGY_V2, [1, 2, 3, 4]),
        ];
        let template = template(b"AuthenticAMD", 4, &more);
        assert!(!template.is_intel());
        let cpuid = template.for_vcpu(3).expect("leaves");
        assert_eq!(find(&cpuid, AMD_SIZES, 0).ecx, 2 << 12 | 3);
        let topology = find(&cpuid, AMD_TOPOLOGY, 0);
        assert_eq!((topology.eax, topology.ebx, topology.ecx), (3, 3, 0));
        assert_eq!(find(&cpuid, AMD_POWER, 0).ebx, 0b11);
        assert!(cpuid.as_slice().iter().all(|entry| entry.function != AMD_TOPOLOGY_V2));
    }

    #[test]
    fn a_single_vcpu_is_not_hyper_threaded() {
        let cpuid = template(b"GenuineIntel", 1, &[]).for_vcpu(0).expect("leaves");
        let features = find(&cpuid, FEATURES, 0);
        assert_eq!((features.edx & HYPER_THREADING, features.ebx), (0, 0x0001_0800));
    }
}
