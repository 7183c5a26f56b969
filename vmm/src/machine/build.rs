//! Building a machine, step by step in the order in which the steps need each other.
//!
//! Promises: what fails leaves nothing behind: no thread, no mapping, no open file. Must never: let the guest run.

use std::sync::{Arc, Mutex};

use devices::PowerSignal;
use memtier::{Memtier, MemtierConfig};

use super::{Control, Inner, Lifecycle, Machine, MachineError};
use crate::acpi::{self, Hardware};
use crate::boot;
use crate::config::{EntryMode, MachineConfig, TieringConfig};
use crate::kvm::dirty::Prepared;
use crate::kvm::{self, Vm, capability};
use crate::memory::GuestRam;
use crate::vcpu::gate::Gate;
use crate::vcpu::run::Shared;
use crate::vcpu::setup::Blueprint;
use crate::vcpu::signals;
use crate::wiring::devices::{self as wiring, Connections, ExtraPio};
use crate::wiring::pin;

pub fn build(config: MachineConfig, extra: Vec<ExtraPio>) -> Result<Machine, MachineError> {
    let system = |what| move |source| MachineError::System { what, source };
    signals::install().map_err(system("signal handlers"))?;
    let kvm = kvm::open()?;
    capability::check(&kvm)?;
    let blueprint = Blueprint::new(&kvm, config.cpus)?;

    // First made, last dropped, here and in the machine: whatever else there is points into it.
    let ram = Arc::new(GuestRam::new(config.memory, config.huge_pages)?);
    let memory = ram.handle();
    // The tiers before anything touches guest memory: they must see every page's first touch.
    let tiers = config.tiering.as_ref().map(|tiering| Tiers::new(&ram, &config, tiering)).transpose()?;
    let memtier = tiers.as_ref().map(|tiers| Arc::clone(&tiers.memtier));

    let entry = boot::load(memory, config.memory, &config.boot)?;
    if config.boot.entry == EntryMode::Linux {
        let hardware = Hardware { cpus: config.cpus, virtio_devices: config.virtio_devices() };
        acpi::write(memory, hardware)?;
    }

    let vm = Arc::new(Vm::new(&kvm, Arc::clone(&ram))?);
    let dirty_log = config.tiering.as_ref().map(|tiering| Prepared::new(&kvm, &vm, tiering.dirty_log)).transpose()?;
    let power = PowerSignal::new().map_err(system("an event file descriptor"))?;
    let gate = Arc::new(Gate::new());
    let pinner = pin::pinner(memtier.as_ref());
    let connections = Connections { vm: &vm, pinner, power: &power, gate: &gate };
    let wiring::Built { devices, ports, mmio } = wiring::build(&config, extra, &connections)?;
    let vcpus = (0..config.cpus)
        .map(|index| blueprint.create(&vm, index, entry, config.memory))
        .collect::<Result<Vec<_>, _>>()?;
    let leave_guest = {
        let gate = Arc::clone(&gate);
        Box::new(move || gate.visit())
    };
    let dirty_log = dirty_log.flatten().map(|prepared| prepared.connect(&vcpus, leave_guest)).transpose()?;
    if let (Some(memtier), Some(dirty_log)) = (&memtier, &dirty_log) {
        memtier.connect_dirty_log(dirty_log.handle())?;
    }

    let lifecycle = Lifecycle::new().map_err(system("an event file descriptor"))?;
    let machine_checks = blueprint.machine_checks();
    let shared = Arc::new(Shared { gate, ports, mmio, power, vm, memtier, dirty_log, machine_checks });
    if let Some(tiers) = tiers {
        tiers.keep();
    }
    let inner = Arc::new(Inner { devices, shared, lifecycle });
    Ok(Machine { config, inner, control: Mutex::new(Control { vcpus, supervisor: None }), ram })
}

/// Tiers that are shut down again if building fails after them.
struct Tiers {
    memtier: Arc<Memtier>,
    kept: bool,
}

impl Tiers {
    fn new(ram: &GuestRam, machine: &MachineConfig, tiering: &TieringConfig) -> Result<Self, MachineError> {
        let config = MemtierConfig {
            regions: ram.region_specs()?,
            vcpus: u16::from(machine.cpus),
            tracker: tiering.tracker,
            huge_pages: machine.huge_pages,
        };
        let tiers = Self { memtier: Memtier::new(config)?, kept: false };
        for area in &tiering.areas {
            tiers.memtier.swapon(area)?;
        }
        Ok(tiers)
    }

    /// The machine shuts them down from now on.
    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Tiers {
    fn drop(&mut self) {
        if !self.kept {
            self.memtier.shutdown();
        }
    }
}
