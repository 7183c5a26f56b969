//! The machine's devices: made, put on their buses, connected to KVM.
//!
//! Promises: what [`Devices::stop`] returns from touches no guest memory any more. Must never: decide where a device is; [`super::ports`],
//! [`super::irq`] and the memory layout do.
//!
//! Locks: one per device, taken alone.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::bus::BusError;
use devices::virtio::{Block, Disk, DiskError, MmioTransport, Rng, VirtioDevice};
use devices::{Bus, BusDevice, I8042, Pinner, PowerSignal, ResetRegister, SerialPort, SleepRegisters};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::console::{self, ConsoleError};
use super::{irq, ports};
use crate::config::MachineConfig;
use crate::kvm::{KvmError, Vm};
use crate::memory::layout;
use crate::vcpu::gate::Gate;

/// An additional device on I/O ports.
pub struct ExtraPio {
    /// First port.
    pub port: u16,
    /// Number of ports.
    pub len: u16,
    /// The device.
    pub device: Arc<Mutex<dyn BusDevice>>,
}

/// Why a device is not there.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// A disk's file.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The console.
    #[error(transparent)]
    Console(#[from] ConsoleError),
    /// The console's file is also a disk.
    #[error("{} is both console file and disk", .path.display())]
    ConsoleIsDisk {
        /// The file.
        path: PathBuf,
    },
    /// Two devices at one place.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// No event file descriptors left.
    #[error("cannot make event file descriptors")]
    Event(#[source] io::Error),
    /// Not connected.
    #[error(transparent)]
    Kvm(#[from] KvmError),
}

/// Handles to devices that the machine talks to after they are on their buses.
pub struct Devices {
    serial: Arc<Mutex<SerialPort>>,
    keyboard: Arc<Mutex<I8042>>,
    virtio: Vec<Arc<Mutex<MmioTransport>>>,
}

/// All devices and the buses that they are on.
pub struct Built {
    /// The handles.
    pub devices: Devices,
    /// Devices on I/O ports.
    pub ports: Bus,
    /// Devices in memory.
    pub mmio: Bus,
}

/// What devices are connected to.
pub struct Connections<'a> {
    /// For interrupts and notifications.
    pub vm: &'a Vm,
    /// For pages that must stay.
    pub pinner: Arc<dyn Pinner>,
    /// For ends of the guest.
    pub power: &'a PowerSignal,
    /// For output that must not hold up a stop.
    pub gate: &'a Arc<Gate>,
}

/// Makes all devices of `config`, and `extra` ones.
pub fn build(config: &MachineConfig, extra: Vec<ExtraPio>, to: &Connections<'_>) -> Result<Built, DeviceError> {
    // Disks first: a file that cannot be opened should be told before a console file is emptied.
    let virtio = virtio_devices(config)?;
    let (mut ports, mut mmio) = (Bus::new(), Bus::new());
    let serial = shared(serial(config, to)?);
    insert(&mut ports, "serial port", ports::SERIAL, SerialPort::LEN, serial.clone())?;
    let keyboard = shared(I8042::new(to.power.clone(), interrupt(to.vm, irq::KEYBOARD_GSI)?));
    insert(&mut ports, "keyboard controller", ports::I8042_DATA, I8042::LEN, keyboard.clone())?;
    let sleep = shared(SleepRegisters::new(to.power.clone()));
    insert(&mut ports, "sleep registers", ports::SLEEP, SleepRegisters::LEN, sleep)?;
    let reset = shared(ResetRegister::new(to.power.clone()));
    insert(&mut ports, "reset register", ports::RESET, ResetRegister::LEN, reset)?;
    for ExtraPio { port, len, device } in extra {
        insert(&mut ports, "extra device", port, u64::from(len), device)?;
    }
    let mut transports = Vec::with_capacity(virtio.len());
    for (index, device) in virtio.into_iter().enumerate() {
        let transport = shared(transport(device, index, to)?);
        let window = layout::virtio_window(index);
        mmio.insert(format!("virtio device {index}"), window, MmioTransport::LEN, transport.clone())?;
        transports.push(transport);
    }
    let devices = Devices { serial, keyboard, virtio: transports };
    Ok(Built { devices, ports, mmio })
}

/// In the order in which the guest finds them: disks, then entropy.
fn virtio_devices(config: &MachineConfig) -> Result<Vec<Box<dyn VirtioDevice>>, DeviceError> {
    let mut all: Vec<Box<dyn VirtioDevice>> = Vec::new();
    for disk in &config.disks {
        if config.console == crate::config::ConsoleConfig::File(disk.path.clone()) {
            return Err(DeviceError::ConsoleIsDisk { path: disk.path.clone() });
        }
        all.push(Box::new(Block::new(Disk::open(&disk.path, disk.read_only)?)));
    }
    if config.entropy {
        all.push(Box::new(Rng::new()));
    }
    Ok(all)
}

fn serial(config: &MachineConfig, to: &Connections<'_>) -> Result<SerialPort, DeviceError> {
    let output = console::output(&config.console, Arc::clone(to.gate))?;
    SerialPort::new(interrupt(to.vm, irq::SERIAL_GSI)?, output).map_err(DeviceError::Event)
}

fn transport(device: Box<dyn VirtioDevice>, index: usize, to: &Connections<'_>) -> Result<MmioTransport, DeviceError> {
    let memory = to.vm.ram().handle().clone();
    let interrupt = interrupt(to.vm, irq::virtio_gsi(index))?;
    let transport =
        MmioTransport::new(device, memory, Arc::clone(&to.pinner), interrupt).map_err(DeviceError::Event)?;
    let notify = layout::virtio_window(index) + MmioTransport::QUEUE_NOTIFY;
    for (queue, event) in (0..).zip(transport.queue_events()) {
        to.vm.connect_notification(event, notify, queue)?;
    }
    Ok(transport)
}

/// An event whose signals are interrupts on line `gsi`.
fn interrupt(vm: &Vm, gsi: u32) -> Result<EventFd, DeviceError> {
    let event = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).map_err(DeviceError::Event)?;
    vm.connect_interrupt(&event, gsi)?;
    Ok(event)
}

fn insert(
    bus: &mut Bus,
    name: &str,
    port: u16,
    len: u64,
    device: Arc<Mutex<dyn BusDevice>>,
) -> Result<(), DeviceError> {
    Ok(bus.insert(name, u64::from(port), len, device)?)
}

fn shared<T>(device: T) -> Arc<Mutex<T>> {
    Arc::new(Mutex::new(device))
}

impl Devices {
    /// The serial port, for its input.
    pub fn serial(&self) -> Arc<Mutex<SerialPort>> {
        Arc::clone(&self.serial)
    }

    /// The keyboard.
    pub fn keyboard(&self) -> MutexGuard<'_, I8042> {
        lock(&self.keyboard)
    }

    /// Lets requests at work finish and holds the devices. vCPUs must be held.
    pub fn pause(&self) {
        self.each(MmioTransport::pause);
    }

    /// Lets the devices go on.
    pub fn resume(&self) {
        self.each(MmioTransport::resume);
    }

    /// Stops the devices for good. vCPUs must have ended.
    pub fn stop(&self) {
        self.each(MmioTransport::reset);
    }

    fn each(&self, action: impl Fn(&mut MmioTransport)) {
        for transport in &self.virtio {
            action(&mut lock(transport));
        }
    }
}

fn lock<T>(device: &Mutex<T>) -> MutexGuard<'_, T> {
    // As on the bus: a device whose thread panicked is still the guest's device.
    device.lock().unwrap_or_else(PoisonError::into_inner)
}
