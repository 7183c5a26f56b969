//! Ebb's machine: KVM, boot, vCPUs, guest memory, device wiring, lifecycle.
//!
//! Climb it in this order: [`config`] (what a user asks for), `memory` (guest RAM), `boot` and `acpi` (what lies in it at the start), `kvm`,
//! `vcpu`, `wiring` (devices), then [`Machine`], which puts them together. [`host_check`] asks a host what it can do.
//!
//! Promises: nothing that a guest does harms this process; every end of a guest is told with its reason. Must never: decide which memory
//! leaves; that is the tiers' business, reached through [`Machine::memtier`].

mod acpi;
mod boot;
pub mod config;
pub mod host_check;
mod kvm;
mod machine;
mod memory;
mod vcpu;
mod wiring;

pub use boot::{BootError, CmdlineError, DEFAULT_CMDLINE, InitrdError, KernelError};
pub use config::{
    BootSource, ConfigError, ConsoleConfig, DirtyLogMode, DiskConfig, EntryMode, MachineConfig, TieringConfig,
};
pub use machine::{ExitReason, ExtraPio, Machine, MachineError, MachineState};
