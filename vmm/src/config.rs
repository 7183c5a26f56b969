//! What a machine is made from: plain data, checked before anything is opened or mapped.
//!
//! Promises: [`MachineConfig::validate`] refuses every number that building would stumble over, with a sentence that names value and limit.
//! Must never: open files; a missing kernel is the loader's error to tell.

use std::path::PathBuf;

use memtier::status::{AreaSpec, HugePages, TrackerChoice};
use memtier::units::{Bytes, PAGE_SIZE};

use crate::memory::{host_memory, layout};
use crate::wiring::irq;

/// A machine, as its user describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineConfig {
    /// A name, for people and logs.
    pub id: String,
    /// Number of vCPUs, 1..=[`MAX_CPUS`].
    pub cpus: u8,
    /// Guest memory in bytes, a multiple of the page size.
    pub memory: u64,
    /// What backs it.
    pub huge_pages: HugePages,
    /// What runs.
    pub boot: BootSource,
    /// Disks in the order in which the guest finds them.
    pub disks: Vec<DiskConfig>,
    /// Whether there is a virtio-rng.
    pub entropy: bool,
    /// Where the first serial port goes.
    pub console: ConsoleConfig,
    /// Tiering; without it guest memory stays where it is.
    pub tiering: Option<TieringConfig>,
}

/// The most vCPUs that a machine can have.
pub const MAX_CPUS: u8 = 32;

/// What the machine boots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BootSource {
    /// A bzImage or an ELF image.
    pub kernel: PathBuf,
    /// An initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line; without one, [`crate::DEFAULT_CMDLINE`].
    pub cmdline: Option<String>,
    /// How vCPUs start.
    pub entry: EntryMode,
}

/// How vCPUs start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EntryMode {
    /// As Linux expects it: vCPU 0 enters the kernel, the others wait for it to start them.
    #[default]
    Linux,
    /// Bare payload images: every vCPU starts at the ELF entry at once, in 64-bit mode with flat segments, the first 4 GiB mapped one to one
    /// (supervisor, writable), interrupts off, IOPL 0, SSE on. `RDI` = vCPU index, `RSI` = guest memory in bytes, `RSP` = 0.
    EveryVcpu,
}

/// A disk backed by a raw file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskConfig {
    /// The file.
    pub path: PathBuf,
    /// Whether the guest may only read.
    pub read_only: bool,
}

/// Where the first serial port goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ConsoleConfig {
    /// Nowhere; the port is there and swallows what is written.
    #[default]
    Off,
    /// This process's standard input and output. A terminal is switched to raw mode and back; Ctrl-A x ends the guest.
    Stdio,
    /// Output to this file, made or emptied first; no input.
    File(PathBuf),
}

/// How cold memory leaves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TieringConfig {
    /// How accesses are seen.
    pub tracker: TrackerChoice,
    /// How KVM is asked which pages were written.
    pub dirty_log: DirtyLogMode,
    /// Swap areas to switch on before the guest starts.
    pub areas: Vec<AreaSpec>,
}

/// How KVM is asked which pages were written. Both cost nothing before somebody asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DirtyLogMode {
    /// A bitmap of all guest memory.
    #[default]
    Bitmap,
    /// A ring for each vCPU: what was written costs, what was not costs nothing, and which vCPU wrote it is known. A vCPU stops for a moment
    /// when its ring is full.
    Ring {
        /// Entries of each ring, a power of two, [`MIN_RING_ENTRIES`]..=[`MAX_RING_ENTRIES`]; 16 bytes each.
        entries: u32,
    },
}

/// The least entries of a dirty ring: KVM keeps up to 576 in reserve, for what the processor buffers.
pub const MIN_RING_ENTRIES: u32 = 1024;
/// The most entries of a dirty ring (KVM's limit).
pub const MAX_RING_ENTRIES: u32 = 1 << 16;

/// Why a configuration is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Not 1..=[`MAX_CPUS`].
    #[error("{cpus} vCPUs asked for, a machine has 1 to {MAX_CPUS}")]
    Cpus {
        /// What was asked for.
        cpus: u8,
    },
    /// Less memory than the boot structures take.
    #[error("guest memory of {} is too small, at least {} are needed", Bytes(*.memory), Bytes(layout::MIN_MEMORY))]
    MemoryTooSmall {
        /// What was asked for.
        memory: u64,
    },
    /// Not a multiple of the page size.
    #[error("guest memory of {memory} bytes is not a multiple of the page size, {PAGE_SIZE}")]
    MemoryNotInPages {
        /// What was asked for.
        memory: u64,
    },
    /// Not a multiple of 2 MiB, where pages of that size were asked for.
    #[error("guest memory of {} is not a multiple of 2 MiB, as huge pages of that size need it", Bytes(*.memory))]
    MemoryNotInHugePages {
        /// What was asked for.
        memory: u64,
    },
    /// More than the host has.
    #[error("guest memory of {} is more than this host has, {}", Bytes(*.memory), Bytes(*.host))]
    MemoryBeyondHost {
        /// What was asked for.
        memory: u64,
        /// The host's memory.
        host: u64,
    },
    /// More virtio devices than interrupt lines.
    #[error("{devices} virtio devices asked for, the machine has interrupt lines for {}", irq::MAX_VIRTIO_DEVICES)]
    Devices {
        /// What was asked for.
        devices: usize,
    },
    /// Not a power of two, or not [`MIN_RING_ENTRIES`]..=[`MAX_RING_ENTRIES`].
    #[error(
        "a dirty ring of {entries} entries asked for, a ring has a power of two from {MIN_RING_ENTRIES} to {MAX_RING_ENTRIES}"
    )]
    DirtyRing {
        /// What was asked for.
        entries: u32,
    },
    /// A payload image takes neither an initrd nor a command line.
    #[error("a payload image takes no {what}")]
    NotForPayload {
        /// Which of the two was given.
        what: &'static str,
    },
}

impl MachineConfig {
    /// The first thing that is wrong with this configuration.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let cpus = self.cpus;
        if !(1..=MAX_CPUS).contains(&cpus) {
            return Err(ConfigError::Cpus { cpus });
        }
        self.validate_memory(host_memory())?;
        let devices = self.virtio_devices();
        if devices > irq::MAX_VIRTIO_DEVICES {
            return Err(ConfigError::Devices { devices });
        }
        if let Some(TieringConfig { dirty_log: DirtyLogMode::Ring { entries }, .. }) = self.tiering
            && !(entries.is_power_of_two() && (MIN_RING_ENTRIES..=MAX_RING_ENTRIES).contains(&entries))
        {
            return Err(ConfigError::DirtyRing { entries });
        }
        if self.boot.entry == EntryMode::EveryVcpu {
            if self.boot.initrd.is_some() {
                return Err(ConfigError::NotForPayload { what: "initrd" });
            }
            if self.boot.cmdline.is_some() {
                return Err(ConfigError::NotForPayload { what: "command line" });
            }
        }
        Ok(())
    }

    /// How many virtio devices the machine will have.
    pub(crate) fn virtio_devices(&self) -> usize {
        self.disks.len() + usize::from(self.entropy)
    }

    fn validate_memory(&self, host: Option<u64>) -> Result<(), ConfigError> {
        let memory = self.memory;
        if !memory.is_multiple_of(PAGE_SIZE as u64) {
            return Err(ConfigError::MemoryNotInPages { memory });
        }
        if self.huge_pages == HugePages::Hugetlb2M && !memory.is_multiple_of(2 << 20) {
            return Err(ConfigError::MemoryNotInHugePages { memory });
        }
        if memory < layout::MIN_MEMORY {
            return Err(ConfigError::MemoryTooSmall { memory });
        }
        match host {
            Some(host) if memory > host => Err(ConfigError::MemoryBeyondHost { memory, host }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> MachineConfig {
        MachineConfig {
            id: "test".into(),
            cpus: 1,
            memory: 64 << 20,
            huge_pages: HugePages::Off,
            boot: BootSource::default(),
            disks: vec![],
            entropy: true,
            console: ConsoleConfig::Off,
            tiering: None,
        }
    }

    fn refusal(change: impl FnOnce(&mut MachineConfig)) -> String {
        let mut config = good();
        change(&mut config);
        config.validate().expect_err("is refused").to_string()
    }

    #[test]
    fn a_plain_machine_is_accepted() {
        assert_eq!(good().validate(), Ok(()));
    }

    #[test]
    fn refusals_name_value_and_limit() {
        assert_eq!(refusal(|c| c.cpus = 0), "0 vCPUs asked for, a machine has 1 to 32");
        assert_eq!(refusal(|c| c.cpus = 33), "33 vCPUs asked for, a machine has 1 to 32");
        assert_eq!(refusal(|c| c.memory = 0), "guest memory of 0 B is too small, at least 1 MiB are needed");
        assert_eq!(
            refusal(|c| c.memory = (64 << 20) + 1),
            "guest memory of 67108865 bytes is not a multiple of the page size, 4096"
        );
        assert_eq!(
            refusal(|c| {
                c.memory = 65 << 20;
                c.huge_pages = HugePages::Hugetlb2M;
            }),
            "guest memory of 65 MiB is not a multiple of 2 MiB, as huge pages of that size need it"
        );
        let beyond = refusal(|c| c.memory = 1 << 60);
        assert!(beyond.starts_with("guest memory of 1073741824 GiB is more than this host has, "), "{beyond}");
        for entries in [0, 512, 1025, 1 << 17] {
            let dirty_log = DirtyLogMode::Ring { entries };
            assert_eq!(
                refusal(|c| c.tiering = Some(TieringConfig { dirty_log, ..Default::default() })),
                format!("a dirty ring of {entries} entries asked for, a ring has a power of two from 1024 to 65536")
            );
        }
        let disk = DiskConfig { path: "disk".into(), read_only: false };
        assert_eq!(
            refusal(|c| c.disks = vec![disk; 19]),
            "20 virtio devices asked for, the machine has interrupt lines for 19"
        );
        assert_eq!(
            refusal(|c| {
                c.boot.entry = EntryMode::EveryVcpu;
                c.boot.initrd = Some("initrd".into());
            }),
            "a payload image takes no initrd"
        );
        assert_eq!(
            refusal(|c| {
                c.boot.entry = EntryMode::EveryVcpu;
                c.boot.cmdline = Some("quiet".into());
            }),
            "a payload image takes no command line"
        );
    }
}
