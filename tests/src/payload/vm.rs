//! A payload guest: a machine with the image in it.
//!
//! Promises: once started, every vCPU waits for commands; dropping the handle ends the guest and waits until it is torn down. Must never:
//! configure a machine in a way that the public configuration can't.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use memtier::status::{AreaSpec, HugePages, TrackerChoice};
use memtier::{Memtier, status::GuestRange};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
use vmm::config::{BootSource, ConsoleConfig, EntryMode, MachineConfig, TieringConfig};
use vmm::{ExtraPio, Machine};

use super::abi::{ADDRESS_LIMIT, LAYOUT_PAGE, MAX_REGIONS, MAX_VCPUS, PAGE, PORT_BASE, PORTS_PER_VCPU, WORK_BASE};
use super::error::PayloadError;
use super::image::Image;
use super::line::{Line, LineDevice};
use super::memory::GuestWords;
use super::vcpu::Vcpu;

/// How long the image may take to get to ring 3: milliseconds, on a machine that has nothing else to do.
const BOOT_TIME: Duration = Duration::from_secs(60);

/// What guest to start.
#[derive(Clone, Debug)]
pub struct PayloadPlan {
    /// Number of vCPUs.
    pub vcpus: u8,
    /// Guest memory in bytes.
    pub memory: u64,
    /// What backs its memory.
    pub huge_pages: HugePages,
    /// How memory is tiered, if it is.
    pub tiering: Option<TieringConfig>,
}

impl PayloadPlan {
    /// A guest without tiering.
    pub fn plain(vcpus: u8, memory: u64) -> Self {
        Self { vcpus, memory, huge_pages: HugePages::Off, tiering: None }
    }

    /// A guest with one swap area in this file, of this size.
    pub fn tiered(vcpus: u8, memory: u64, swap: impl Into<PathBuf>, size: u64) -> Self {
        Self::with_areas(vcpus, memory, vec![AreaSpec { path: swap.into(), size: Some(size), ..AreaSpec::default() }])
    }

    /// A guest with these swap areas, watched by `unmap`.
    pub fn with_areas(vcpus: u8, memory: u64, areas: Vec<AreaSpec>) -> Self {
        let tiering = TieringConfig { tracker: TrackerChoice::Unmap, areas, ..TieringConfig::default() };
        Self { vcpus, memory, huge_pages: HugePages::Off, tiering: Some(tiering) }
    }
}

/// A running payload guest.
pub struct PayloadVm {
    machine: Arc<Machine>,
    lines: Vec<Arc<Line>>,
}

impl PayloadVm {
    /// Builds the machine, starts it and waits until every vCPU is ready for commands.
    pub fn start(plan: &PayloadPlan) -> Result<Self, PayloadError> {
        if u64::from(plan.vcpus) > MAX_VCPUS {
            return Err(PayloadError::BeyondImage { what: "vCPUs", value: plan.vcpus.into(), limit: MAX_VCPUS });
        }
        let image = Image::new().map_err(PayloadError::Image)?;
        let lines: Vec<_> = (0..plan.vcpus).map(|_| Arc::new(Line::default())).collect();
        let machine = Machine::build_with(machine_config(plan, image.path()), port_devices(&lines))?;
        let vm = Self { machine, lines };
        vm.describe_memory()?;
        vm.machine.start()?;
        vm.vcpus().try_for_each(|vcpu| vcpu.wait_ready(BOOT_TIME))?;
        Ok(vm)
    }

    /// A vCPU.
    ///
    /// # Panics
    /// If there is no such vCPU.
    pub fn vcpu(&self, index: u8) -> Vcpu<'_> {
        Vcpu { index, line: &self.lines[usize::from(index)], machine: &self.machine }
    }

    /// All vCPUs.
    pub fn vcpus(&self) -> impl Iterator<Item = Vcpu<'_>> {
        (0..=u8::MAX).zip(&self.lines).map(|(index, _)| self.vcpu(index))
    }

    /// The machine.
    pub fn machine(&self) -> &Arc<Machine> {
        &self.machine
    }

    /// The machine's tiers.
    ///
    /// # Panics
    /// If the plan had none.
    pub fn memtier(&self) -> &Arc<Memtier> {
        self.machine.memtier().expect("the plan asked for tiering")
    }

    /// Guest memory, word by word.
    pub fn words(&self) -> GuestWords<'_> {
        GuestWords::new(self.machine.memory())
    }

    /// Workload memory: everything from `WORK_BASE` on, region by region.
    pub fn work_ranges(&self) -> Vec<GuestRange> {
        let memory = self.machine.memory().iter().map(|region| (region.start_addr().raw_value(), region.len()));
        memory
            .map(|(start, len)| (start.max(WORK_BASE), start + len))
            .filter(|(start, end)| start < end)
            .map(|(start, end)| GuestRange { start, len: end - start })
            .collect()
    }

    /// Tells the image which memory to map.
    fn describe_memory(&self) -> Result<(), PayloadError> {
        let regions: Vec<_> =
            self.machine.memory().iter().map(|region| (region.start_addr().raw_value(), region.len())).collect();
        if regions.len() > MAX_REGIONS {
            let value = regions.len() as u64;
            return Err(PayloadError::BeyondImage {
                what: "number of memory regions",
                value,
                limit: MAX_REGIONS as u64,
            });
        }
        if let Some(end) = regions.iter().map(|(start, len)| start + len).find(|end| *end > ADDRESS_LIMIT) {
            return Err(PayloadError::BeyondImage { what: "end of memory", value: end, limit: ADDRESS_LIMIT });
        }
        let pairs = regions.iter().flat_map(|(start, len)| [*start, len.next_multiple_of(PAGE)]);
        self.words().write_all(LAYOUT_PAGE, std::iter::once(regions.len() as u64).chain(pairs))
    }
}

impl Drop for PayloadVm {
    fn drop(&mut self) {
        self.machine.stop();
        self.machine.wait();
    }
}

fn machine_config(plan: &PayloadPlan, kernel: PathBuf) -> MachineConfig {
    MachineConfig {
        id: "payload".into(),
        cpus: plan.vcpus,
        memory: plan.memory,
        huge_pages: plan.huge_pages,
        boot: BootSource { kernel, initrd: None, cmdline: None, entry: EntryMode::EveryVcpu },
        disks: Vec::new(),
        entropy: false,
        console: ConsoleConfig::Off,
        tiering: plan.tiering.clone(),
    }
}

fn port_devices(lines: &[Arc<Line>]) -> Vec<ExtraPio> {
    let ports = (PORT_BASE..).step_by(usize::from(PORTS_PER_VCPU));
    ports
        .zip(lines)
        .map(|(port, line)| ExtraPio {
            port,
            len: PORTS_PER_VCPU,
            device: Arc::new(Mutex::new(LineDevice(Arc::clone(line)))),
        })
        .collect()
}
