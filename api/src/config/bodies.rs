//! JSON bodies that describe a machine, the same in the configuration file and in requests: Firecracker's names, and Ebb's additions.
//!
//! Promises: an unknown key is an error; a key of Firecracker's that Ebb has no counterpart for is taken only with the value that means
//! "as if it were not there", and refused by name otherwise. Must never: drop a wish silently.

use std::path::PathBuf;

use memtier::status::AreaSpec;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::draft::DraftError;

/// What to boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BootSource {
    /// The kernel: a bzImage, or an ELF file with a PVH note.
    #[schema(value_type = String)]
    pub kernel_image_path: PathBuf,
    /// The initial RAM disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub initrd_path: Option<PathBuf>,
    /// The kernel's command line; without it a default that suits the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_args: Option<String>,
}

/// Processors and memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MachineConfiguration {
    /// Number of vCPUs, 1 to 32.
    #[schema(minimum = 1, maximum = 32)]
    pub vcpu_count: u8,
    /// Memory in MiB.
    #[schema(minimum = 1)]
    pub mem_size_mib: u64,
    /// Simultaneous multithreading; only `false`.
    #[serde(default)]
    pub smt: bool,
    /// Dirty page tracking for snapshots; only `false`.
    #[serde(default)]
    pub track_dirty_pages: bool,
    /// Only `None`.
    #[serde(default, skip_serializing)]
    pub cpu_template: Option<String>,
    /// What backs guest memory: `None`, `2M` (hugetlbfs) or, beyond Firecracker, `thp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub huge_pages: Option<String>,
}

impl MachineConfiguration {
    /// Refuses what Ebb does not have.
    pub fn check(&self) -> Result<(), DraftError> {
        let none = |text: &Option<String>| text.as_deref().is_none_or(|t| t == "None");
        let refused = [
            ("smt", self.smt),
            ("track_dirty_pages", self.track_dirty_pages),
            ("cpu_template", !none(&self.cpu_template)),
        ];
        refuse(&refused)
    }
}

/// Some of [`MachineConfiguration`], the rest stays as it is.
#[derive(Clone, Debug, PartialEq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MachineConfigurationUpdate {
    /// Number of vCPUs, 1 to 32.
    #[serde(default)]
    pub vcpu_count: Option<u8>,
    /// Memory in MiB.
    #[serde(default)]
    pub mem_size_mib: Option<u64>,
    /// Simultaneous multithreading; only `false`.
    #[serde(default)]
    pub smt: bool,
    /// Dirty page tracking for snapshots; only `false`.
    #[serde(default)]
    pub track_dirty_pages: bool,
    /// Only `None`.
    #[serde(default)]
    pub cpu_template: Option<String>,
    /// What backs guest memory: `None`, `2M` or `thp`.
    #[serde(default)]
    pub huge_pages: Option<String>,
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Drive {
    /// Its name in requests: letters, digits and `_`.
    pub drive_id: String,
    /// The raw image.
    #[schema(value_type = String)]
    pub path_on_host: PathBuf,
    /// Whether it is the disk that `root=` shall name.
    pub is_root_device: bool,
    /// Whether the guest may only read it.
    #[serde(default)]
    pub is_read_only: bool,
    /// The root partition's unique id, for `root=PARTUUID=`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partuuid: Option<String>,
    /// `Unsafe` or `Writeback`. Ebb always writes back when the guest flushes, so both are taken.
    #[serde(default, skip_serializing)]
    pub cache_type: Option<CacheType>,
    /// `Sync` or `Async`: a matter of speed that Ebb decides, so both are taken.
    #[serde(default, skip_serializing)]
    pub io_engine: Option<IoEngine>,
    /// Not there yet; only null.
    #[serde(default, skip_serializing)]
    #[schema(value_type = Option<Object>)]
    pub rate_limiter: Option<Value>,
    /// Not there; only null.
    #[serde(default, skip_serializing)]
    pub socket: Option<String>,
}

/// What a guest's flush shall mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[expect(missing_docs, reason = "the words are Firecracker's")]
pub enum CacheType {
    Unsafe,
    Writeback,
}

/// How the disk's file is read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[expect(missing_docs, reason = "the words are Firecracker's")]
pub enum IoEngine {
    Sync,
    Async,
}

impl Drive {
    /// Refuses what Ebb does not have.
    pub fn check(&self) -> Result<(), DraftError> {
        let id = &self.drive_id;
        let good = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if id.is_empty() || id.len() > 64 || !id.chars().all(good) {
            return Err(DraftError::DriveId(id.clone()));
        }
        if self.path_on_host.as_os_str().is_empty() {
            return Err(DraftError::NoDrivePath(id.clone()));
        }
        refuse(&[("rate_limiter", self.rate_limiter.is_some()), ("socket", self.socket.is_some())])
    }
}

/// The random number device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Entropy {
    /// Not there yet; only null.
    #[serde(default, skip_serializing)]
    #[schema(value_type = Option<Object>)]
    pub rate_limiter: Option<Value>,
}

impl Entropy {
    /// Refuses what Ebb does not have.
    pub fn check(&self) -> Result<(), DraftError> {
        refuse(&[("rate_limiter", self.rate_limiter.is_some())])
    }
}

/// Memory tiering from the start.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Tiering {
    /// `auto`, `unmap`, `page_idle`, `dirty_log` or `off`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracker: Option<String>,
    /// Entries of a dirty ring for each vCPU, a power of two; without it the dirty log is a bitmap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dirty_ring: Option<u32>,
    /// Swap areas, switched on in this order.
    #[serde(default)]
    pub swap_areas: Vec<AreaSpec>,
}

/// Names the first key that was given and can't be honoured.
fn refuse(given: &[(&'static str, bool)]) -> Result<(), DraftError> {
    match given.iter().find(|(_, given)| *given) {
        Some((key, _)) => Err(DraftError::Unsupported(key)),
        None => Ok(()),
    }
}
