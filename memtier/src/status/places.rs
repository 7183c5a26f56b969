//! Where pages go, as a client sees it: swap areas, slot caches, the compressed pool.
//!
//! Promises: plain data. Must never: hold locks or references into live structures.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A swap area to switch on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct AreaSpec {
    /// The file; made when it does not exist and a size is given.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub path: PathBuf,
    /// Bytes the file shall have. Without it the file's own size counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// 0..=32767, higher first. Without it the area comes after all areas switched on before it (-2, -3, ... as in the kernel).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u16>,
    /// When freed slots are given back to the disk. Without it, each cluster of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discard: Option<Discard>,
    /// Whether what is written is encrypted, with a key that only this process has. Without it, yes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encrypt: Option<bool>,
}

impl AreaSpec {
    /// This file, everything else as it comes.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), ..Self::default() }
    }
}

/// When slots that hold nothing any more are given back to the disk (swapon's `discard`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Discard {
    /// Never.
    Off,
    /// All of the area when it is switched on, but for its header.
    Once,
    /// Each cluster of 512 slots when its last slot is freed; it is used again only afterwards.
    #[default]
    Cluster,
}

/// Whether an area takes pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum AreaState {
    /// It does.
    #[default]
    On,
    /// It is being switched off: what is in it is brought back.
    GoingOff,
}

/// One swap area, as a row of `/proc/swaps`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AreaInfo {
    /// The area's number, what `DELETE /memtier/swap_areas/{id}` takes.
    pub id: u8,
    /// The file.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub path: PathBuf,
    /// `file` or `partition`, as in `/proc/swaps`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Usable bytes (the header page and bad slots do not count).
    pub size: u64,
    /// Bytes in use.
    pub used: u64,
    /// The priority in force.
    pub priority: i32,
    /// Slots that failed and are not used again.
    pub bad_slots: u64,
    /// Whether direct I/O is in use.
    pub direct_io: bool,
    /// Whether what is written is encrypted.
    pub encrypted: bool,
    /// When freed slots are given back to the disk.
    pub discard: Discard,
    /// Whether it takes pages.
    pub state: AreaState,
    /// The area's identity, from its header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// The area's name, from its header.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub label: String,
}

/// The slot caches: all vCPUs' together, and one by one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SlotCachesInfo {
    /// Whether they may be used.
    pub enabled: bool,
    /// Whether they are in use: while slots are plentiful.
    pub active: bool,
    /// Times all were emptied.
    pub drains: u64,
    /// Times they started.
    pub activations: u64,
    /// Times they stopped.
    pub deactivations: u64,
    /// One for each vCPU.
    pub caches: Vec<SlotCacheInfo>,
}

/// One vCPU's slot cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SlotCacheInfo {
    /// The vCPU.
    pub vcpu: u16,
    /// Slots in it that can be handed out.
    pub supply: u32,
    /// Slots in it that were given back.
    pub returned: u32,
    /// Slots handed out from it so far.
    pub taken: u64,
    /// Slots taken past it.
    pub taken_direct: u64,
    /// Times it was refilled.
    pub refills: u64,
    /// Slots given back into it.
    pub given_back: u64,
    /// Slots given back past it.
    pub given_back_direct: u64,
    /// Times its returned slots went back to their areas.
    pub flushes: u64,
}

/// How pages are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Fast.
    #[default]
    Lz4,
    /// Smaller, several times slower.
    Zstd,
}

/// A compressed pool in the host's memory, before the swap areas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct PoolSpec {
    /// How much of the host's memory it may take.
    pub size: PoolSize,
    /// How pages are compressed.
    #[serde(default)]
    pub compression: Compression,
}

/// A size of the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum PoolSize {
    /// In bytes.
    Bytes(u64),
    /// In percent of guest memory, 1 to 100.
    Percent(u8),
}

impl PoolSize {
    /// In bytes, for a guest with this much memory.
    pub fn of(self, guest_bytes: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => guest_bytes / 100 * u64::from(percent),
        }
    }
}

/// The compressed pool now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PoolInfo {
    /// How pages are compressed.
    pub compression: Compression,
    /// Bytes of host memory that it may take.
    pub limit: u64,
    /// Bytes of host memory that it takes, its tables included.
    pub allocated: u64,
    /// Compressed bytes that are in it.
    pub stored: u64,
    /// Pages that are in it, the same-filled ones not counted.
    pub pages: u64,
    /// Pages made of one word again and again: they take no storage.
    pub same_filled_pages: u64,
    /// Pages that were in it and are on disk now, compressed as they were.
    pub written_back_pages: u64,
    /// Bytes of pages for each byte taken, `pages * 4096 / allocated`; 0 while it is empty.
    pub ratio: f64,
    /// `stored / allocated`: the rest is lost to size classes and holes.
    pub density: f64,
    /// Pages that did not get smaller and went to disk, so far.
    pub incompressible: u64,
    /// Pages that went to disk because it was full, so far.
    pub refused_full: u64,
    /// Pages written back to disk so far.
    pub written_back: u64,
    /// Pages moved to fill holes, so far.
    pub moved: u64,
}
