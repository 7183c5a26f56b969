//! A machine being described, piece by piece, until it is started.
//!
//! Promises: a piece is taken whole or not at all; [`Draft::machine_config`] names what is missing. Must never: hold two drives with one
//! name, two root drives, or one swap file twice.

use std::path::PathBuf;

use memtier::status::{AreaSpec, HugePages};
use memtier::units::MAX_AREAS;
use vmm::config::{self as machine, DirtyLogMode};

use super::bodies::{BootSource, Drive, Entropy, MachineConfiguration, MachineConfigurationUpdate, Tiering};
use super::spec::{Console, Disk, MAX_PRIORITY, SpecError, Tracker, huge_pages_name, parse_huge_pages};

/// Memory when nothing is said.
pub const DEFAULT_MEMORY: u64 = 256 << 20;

/// The instance's name when nothing is said; the one that Firecracker uses.
pub const DEFAULT_ID: &str = "anonymous-instance";

/// Why a piece was not taken, or a machine can't be made of the pieces.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DraftError {
    /// Nothing to boot.
    #[error("no kernel is set: give --kernel, boot-source in the file, or PUT /boot-source")]
    NoKernel,
    /// A name with other than letters, digits and `-`, or too long.
    #[error("id '{0}' is not 1 to 64 letters, digits and '-'")]
    Id(String),
    /// A drive's name with other than letters, digits and `_`, or too long.
    #[error("drive_id '{0}' is not 1 to 64 letters, digits and '_'")]
    DriveId(String),
    /// A drive without a file.
    #[error("drive '{0}' has an empty path_on_host")]
    NoDrivePath(String),
    /// Two drives of one name in a file.
    #[error("drive_id '{0}' is given twice")]
    DriveTwice(String),
    /// Two drives want to be root.
    #[error("drive '{new}' can't be the root device, drive '{old}' is")]
    TwoRoots {
        /// The drive that is.
        old: String,
        /// The drive that would be.
        new: String,
    },
    /// No number of vCPUs.
    #[error("'{0}' is not a number of vCPUs from 1 to 32")]
    NotCpus(String),
    /// vCPU count out of range.
    #[error("{0} vCPUs asked for, 1 to 32 can be had")]
    Cpus(u32),
    /// Memory that does not fit 64 bits, or none.
    #[error("mem_size_mib {0} is not a possible memory size")]
    Memory(u64),
    /// A key of Firecracker's that is not implemented.
    #[error("'{0}' is not supported with this value")]
    Unsupported(&'static str),
    /// Swap areas, and nothing that would fill them.
    #[error("swap areas need a tracker, and the tracker is off")]
    SwapWithoutTracker,
    /// Swap file twice in a file or on the command line.
    #[error("swap area {} is given twice", .0.display())]
    AreaTwice(PathBuf),
    /// A swap area without a file.
    #[error("a swap area's path is empty")]
    NoAreaPath,
    /// More swap areas than can be on.
    #[error("more than {MAX_AREAS} swap areas")]
    TooManyAreas,
    /// Priority beyond `swapon`'s range.
    #[error("priority {0} is above {MAX_PRIORITY}")]
    Priority(u16),
    /// A word for console or tracker that is none.
    #[error("{key}")]
    Word {
        /// The key.
        key: &'static str,
        /// What is wrong with it.
        #[source]
        source: SpecError,
    },
}

/// A machine being described.
#[derive(Clone, Debug, PartialEq)]
pub struct Draft {
    /// The instance's name.
    pub id: String,
    /// What to boot; nothing yet at first.
    pub boot: Option<BootSource>,
    /// Number of vCPUs.
    pub cpus: u8,
    /// Bytes of memory.
    pub memory: u64,
    /// What backs it.
    pub huge_pages: HugePages,
    /// Whether there is a random number device.
    pub entropy: bool,
    /// Where the console goes.
    pub console: Console,
    /// How accesses are seen, or that tiering is off.
    pub tracker: Tracker,
    /// Entries of a dirty ring for each vCPU, if the dirty log is to be rings.
    pub dirty_ring: Option<u32>,
    drives: Vec<Drive>,
    areas: Vec<AreaSpec>,
}

impl Default for Draft {
    fn default() -> Self {
        Self {
            id: DEFAULT_ID.to_owned(),
            boot: None,
            cpus: 1,
            memory: DEFAULT_MEMORY,
            huge_pages: HugePages::Off,
            entropy: true,
            console: Console::default(),
            tracker: Tracker::default(),
            dirty_ring: None,
            drives: Vec::new(),
            areas: Vec::new(),
        }
    }
}

impl Draft {
    /// Names the instance.
    pub fn set_id(&mut self, id: &str) -> Result<(), DraftError> {
        let good = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if id.is_empty() || id.len() > 64 || !id.chars().all(good) {
            return Err(DraftError::Id(id.to_owned()));
        }
        self.id = id.to_owned();
        Ok(())
    }

    /// Sets processors and memory; what the body leaves out goes back to its default.
    pub fn set_machine(&mut self, body: &MachineConfiguration) -> Result<(), DraftError> {
        body.check()?;
        let cpus = checked_cpus(body.vcpu_count)?;
        let huge_pages = body.huge_pages.as_deref().map_or(Ok(HugePages::Off), |word| {
            parse_huge_pages(word).map_err(|source| DraftError::Word { key: "huge_pages", source })
        })?;
        self.memory = checked_memory(body.mem_size_mib)?;
        self.cpus = cpus;
        self.huge_pages = huge_pages;
        Ok(())
    }

    /// Changes the parts of processors and memory that the body names.
    pub fn update_machine(&mut self, body: &MachineConfigurationUpdate) -> Result<(), DraftError> {
        let whole = MachineConfiguration {
            vcpu_count: body.vcpu_count.unwrap_or(self.cpus),
            mem_size_mib: body.mem_size_mib.unwrap_or(self.memory >> 20),
            smt: body.smt,
            track_dirty_pages: body.track_dirty_pages,
            cpu_template: body.cpu_template.clone(),
            huge_pages: Some(body.huge_pages.clone().unwrap_or_else(|| huge_pages_name(self.huge_pages).to_owned())),
        };
        // Memory set by a flag may be no whole number of MiB; without a new value it stays to the byte.
        let memory = self.memory;
        self.set_machine(&whole)?;
        if body.mem_size_mib.is_none() {
            self.memory = memory;
        }
        Ok(())
    }

    /// Adds a drive, or replaces the one of the same name in its place.
    pub fn set_drive(&mut self, drive: Drive) -> Result<(), DraftError> {
        drive.check()?;
        let other_root = self.drives.iter().find(|d| d.is_root_device && d.drive_id != drive.drive_id);
        if let Some(old) = other_root.filter(|_| drive.is_root_device) {
            return Err(DraftError::TwoRoots { old: old.drive_id.clone(), new: drive.drive_id });
        }
        match self.drives.iter_mut().find(|d| d.drive_id == drive.drive_id) {
            Some(old) => *old = drive,
            None => self.drives.push(drive),
        }
        Ok(())
    }

    /// Replaces all drives by those of a file.
    pub fn set_drives(&mut self, drives: Vec<Drive>) -> Result<(), DraftError> {
        self.drives.clear();
        for drive in drives {
            if self.drives.iter().any(|d| d.drive_id == drive.drive_id) {
                return Err(DraftError::DriveTwice(drive.drive_id));
            }
            self.set_drive(drive)?;
        }
        Ok(())
    }

    /// Replaces all drives by those of the command line, in their order, none of them root.
    pub fn set_disks(&mut self, disks: Vec<Disk>) {
        let drive = |(number, disk): (usize, Disk)| Drive {
            drive_id: format!("disk{number}"),
            path_on_host: disk.path,
            is_root_device: false,
            is_read_only: disk.read_only,
            partuuid: None,
            cache_type: None,
            io_engine: None,
            rate_limiter: None,
            socket: None,
        };
        self.drives = disks.into_iter().enumerate().map(drive).collect();
    }

    /// Adds the random number device.
    pub fn set_entropy(&mut self, body: &Entropy) -> Result<(), DraftError> {
        body.check()?;
        self.entropy = true;
        Ok(())
    }

    /// Sets the tracker and replaces all swap areas by those of a file.
    pub fn set_tiering(&mut self, body: Tiering) -> Result<(), DraftError> {
        if let Some(word) = body.tracker {
            self.tracker = word.parse().map_err(|source| DraftError::Word { key: "tracker", source })?;
        }
        self.dirty_ring = body.dirty_ring.or(self.dirty_ring);
        self.set_areas(body.swap_areas)
    }

    /// Replaces all swap areas.
    pub fn set_areas(&mut self, areas: Vec<AreaSpec>) -> Result<(), DraftError> {
        self.areas.clear();
        for area in areas {
            if self.areas.iter().any(|a| a.path == area.path) {
                return Err(DraftError::AreaTwice(area.path));
            }
            self.set_area(area)?;
        }
        Ok(())
    }

    /// Adds a swap area, or replaces the one with the same file; answers its place in the list.
    pub fn set_area(&mut self, area: AreaSpec) -> Result<usize, DraftError> {
        if area.path.as_os_str().is_empty() {
            return Err(DraftError::NoAreaPath);
        }
        if let Some(priority) = area.priority.filter(|p| *p > MAX_PRIORITY) {
            return Err(DraftError::Priority(priority));
        }
        if let Some(place) = self.areas.iter().position(|a| a.path == area.path) {
            self.areas[place] = area;
            return Ok(place);
        }
        if self.areas.len() == MAX_AREAS {
            return Err(DraftError::TooManyAreas);
        }
        self.areas.push(area);
        Ok(self.areas.len() - 1)
    }

    /// The drives.
    pub fn drives(&self) -> &[Drive] {
        &self.drives
    }

    /// The swap areas.
    pub fn areas(&self) -> &[AreaSpec] {
        &self.areas
    }

    /// The machine that the pieces make.
    pub fn machine_config(&self) -> Result<machine::MachineConfig, DraftError> {
        let boot = self.boot.as_ref().ok_or(DraftError::NoKernel)?;
        if self.tracker.0.is_none() && !self.areas.is_empty() {
            return Err(DraftError::SwapWithoutTracker);
        }
        let tiering = self.tracker.0.map(|tracker| machine::TieringConfig {
            tracker,
            dirty_log: self.dirty_ring.map_or(DirtyLogMode::Bitmap, |entries| DirtyLogMode::Ring { entries }),
            areas: self.areas.clone(),
        });
        // The root drive comes first, so that it is the first disk whatever the order of the requests was.
        let (root, others): (Vec<_>, Vec<_>) = self.drives.iter().partition(|d| d.is_root_device);
        let disk = |d: &&Drive| machine::DiskConfig { path: d.path_on_host.clone(), read_only: d.is_read_only };
        Ok(machine::MachineConfig {
            id: self.id.clone(),
            cpus: self.cpus,
            memory: self.memory,
            huge_pages: self.huge_pages,
            boot: machine::BootSource {
                kernel: boot.kernel_image_path.clone(),
                initrd: boot.initrd_path.clone(),
                cmdline: self.cmdline(boot),
                entry: machine::EntryMode::Linux,
            },
            disks: root.iter().chain(&others).map(disk).collect(),
            entropy: self.entropy,
            console: match &self.console {
                Console::Stdio => machine::ConsoleConfig::Stdio,
                Console::Off => machine::ConsoleConfig::Off,
                Console::File(path) => machine::ConsoleConfig::File(path.clone()),
            },
            tiering,
        })
    }

    /// The kernel's command line, with the root device as Firecracker adds it.
    fn cmdline(&self, boot: &BootSource) -> Option<String> {
        let Some(root) = self.drives.iter().find(|d| d.is_root_device) else { return boot.boot_args.clone() };
        let args = boot.boot_args.as_deref().unwrap_or(vmm::DEFAULT_CMDLINE);
        let mode = if root.is_read_only { "ro" } else { "rw" };
        Some(match &root.partuuid {
            Some(uuid) => format!("{args} root=PARTUUID={uuid} {mode}"),
            None => format!("{args} root=/dev/vda {mode}"),
        })
    }
}

/// Checks the number of vCPUs.
pub fn checked_cpus(cpus: u8) -> Result<u8, DraftError> {
    if (1..=32).contains(&cpus) { Ok(cpus) } else { Err(DraftError::Cpus(cpus.into())) }
}

fn checked_memory(mib: u64) -> Result<u64, DraftError> {
    mib.checked_mul(1 << 20).filter(|bytes| *bytes > 0).ok_or(DraftError::Memory(mib))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn area(path: &str) -> AreaSpec {
        AreaSpec::new(path)
    }

    #[test]
    fn as_many_areas_as_can_be_on_and_no_more() {
        let mut draft = Draft::default();
        for number in 0..MAX_AREAS {
            assert_eq!(draft.set_area(area(&number.to_string())), Ok(number));
        }
        assert_eq!(draft.set_area(area("one more")), Err(DraftError::TooManyAreas));
        assert_eq!(draft.set_area(area("3")), Ok(3), "replacing one is no more");
        assert_eq!(DraftError::TooManyAreas.to_string(), "more than 64 swap areas");
    }

    #[test]
    fn a_machine_needs_a_kernel_and_a_root_device_adds_to_the_default_command_line() {
        let mut draft = Draft::default();
        assert_eq!(draft.machine_config().unwrap_err(), DraftError::NoKernel);
        draft.boot = Some(BootSource { kernel_image_path: "k".into(), initrd_path: None, boot_args: None });
        assert_eq!(draft.machine_config().unwrap().boot.cmdline, None);
        let root: Drive = serde_json::from_str(
            r#"{"drive_id": "r", "path_on_host": "r", "is_root_device": true, "is_read_only": true, "partuuid": "ab-01"}"#,
        )
        .unwrap();
        draft.set_drive(root).unwrap();
        let expected = format!("{} root=PARTUUID=ab-01 ro", vmm::DEFAULT_CMDLINE);
        assert_eq!(draft.machine_config().unwrap().boot.cmdline, Some(expected));
    }

    #[test]
    fn memory_set_to_the_byte_survives_a_change_of_the_processors() {
        let mut draft = Draft { memory: (5 << 20) + 4096, ..Draft::default() };
        let update: MachineConfigurationUpdate = serde_json::from_str(r#"{"vcpu_count": 2}"#).unwrap();
        draft.update_machine(&update).unwrap();
        assert_eq!((draft.cpus, draft.memory), (2, (5 << 20) + 4096));
    }

    #[test]
    fn names_are_letters_digits_and_dashes() {
        let mut draft = Draft::default();
        for id in ["", "a_b", "ä", "a b", &"x".repeat(65)] {
            assert_eq!(draft.set_id(id), Err(DraftError::Id(id.to_owned())));
        }
        assert_eq!(draft.set_id(&"x".repeat(64)), Ok(()));
    }
}
