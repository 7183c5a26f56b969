//! One virtual machine: interrupt controllers, memory slots, event file descriptors.
//!
//! Promises: an interrupt line leads to the I/O APIC only. Must never: outlive the guest memory whose addresses its slots hold; whoever owns
//! both drops this first.

use std::io;
use std::sync::Arc;

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQCHIP_IOAPIC, KVM_MEM_LOG_DIRTY_PAGES, KvmIrqRouting, kvm_irq_routing_entry,
    kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_irqchip, kvm_userspace_memory_region,
};
use kvm_ioctls::{IoEventAddress, Kvm, VcpuFd, VmFd};
use vmm_sys_util::errno;
use vmm_sys_util::eventfd::EventFd;

use super::KvmError;
use crate::memory::{GuestRam, layout};
use crate::wiring::irq::IO_APIC_PINS;

/// A virtual machine and the memory in its slots.
pub struct Vm {
    // Declared before the memory: the slots go first.
    fd: VmFd,
    ram: Arc<GuestRam>,
}

impl Vm {
    /// A machine with interrupt controllers, without memory and vCPUs.
    pub fn new(kvm: &Kvm, ram: Arc<GuestRam>) -> Result<Self, KvmError> {
        let fd = kvm.create_vm().map_err(KvmError::call("KVM_CREATE_VM"))?;
        // KVM on Intel wants these two before the first vCPU.
        fd.set_identity_map_address(layout::KVM_IDENTITY_MAP).map_err(KvmError::call("KVM_SET_IDENTITY_MAP_ADDR"))?;
        let tss = usize::try_from(layout::KVM_TSS).expect("addresses have 64 bits");
        fd.set_tss_address(tss).map_err(KvmError::call("KVM_SET_TSS_ADDR"))?;
        fd.create_irq_chip().map_err(KvmError::call("KVM_CREATE_IRQCHIP"))?;
        let vm = Self { fd, ram };
        vm.route_interrupts()?;
        vm.add_memory()?;
        Ok(vm)
    }

    /// Every line to the I/O APIC's pin of the same number, and nowhere else. KVM's default also leads the first 16 to the 8259s, which a
    /// guest on reduced hardware never programs: they would deliver vectors that mean exceptions.
    fn route_interrupts(&self) -> Result<(), KvmError> {
        let entries: Vec<_> = (0..IO_APIC_PINS).map(io_apic_route).collect();
        let routing = KvmIrqRouting::from_entries(&entries).expect("two dozen routes");
        self.fd.set_gsi_routing(&routing).map_err(KvmError::call("KVM_SET_GSI_ROUTING"))
    }

    fn add_memory(&self) -> Result<(), KvmError> {
        let slots = self.ram.slots().count();
        (0..slots).try_for_each(|slot| self.set_slot(slot, 0)).map_err(KvmError::call("KVM_SET_USER_MEMORY_REGION"))
    }

    /// Whether KVM shall log what is written to slot number `slot`. Setting what is set already changes nothing.
    pub fn log_writes(&self, slot: usize, log: bool) -> io::Result<()> {
        Ok(self.set_slot(slot, if log { KVM_MEM_LOG_DIRTY_PAGES } else { 0 })?)
    }

    fn set_slot(&self, slot: usize, flags: u32) -> Result<(), errno::Error> {
        let no_slot = errno::Error::new(libc::EINVAL);
        let (range, start) = self.ram.slots().nth(slot).ok_or(no_slot)?;
        let region = kvm_userspace_memory_region {
            slot: u32::try_from(slot).map_err(|_| no_slot)?,
            flags,
            guest_phys_addr: range.start,
            memory_size: range.len,
            userspace_addr: start.0,
        };
        // SAFETY: the address and length are one region of `self.ram`, which stays mapped until after `self.fd` is closed and every vCPU made
        // from it is gone: each vCPU holds this `Vm`. A slot is always set to the same region.
        unsafe { self.fd.set_user_memory_region(region) }
    }

    /// For calls that the rest of this module's house makes.
    pub(super) fn fd(&self) -> &VmFd {
        &self.fd
    }

    /// The memory in the slots.
    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    /// A new vCPU.
    pub fn create_vcpu(&self, index: u8) -> Result<VcpuFd, KvmError> {
        self.fd.create_vcpu(u64::from(index)).map_err(KvmError::call("KVM_CREATE_VCPU"))
    }

    /// Signals on `event` become edges on line `gsi`.
    pub fn connect_interrupt(&self, event: &EventFd, gsi: u32) -> Result<(), KvmError> {
        self.fd.register_irqfd(event, gsi).map_err(KvmError::call("KVM_IRQFD"))
    }

    /// A guest's 32-bit write of `value` at `address` becomes a signal on `event`, without leaving the kernel.
    pub fn connect_notification(&self, event: &EventFd, address: u64, value: u32) -> Result<(), KvmError> {
        let address = IoEventAddress::Mmio(address);
        self.fd.register_ioevent(event, &address, value).map_err(KvmError::call("KVM_IOEVENTFD"))
    }
}

fn io_apic_route(pin: u32) -> kvm_irq_routing_entry {
    kvm_irq_routing_entry {
        gsi: pin,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        u: kvm_irq_routing_entry__bindgen_ty_1 {
            irqchip: kvm_irq_routing_irqchip { irqchip: KVM_IRQCHIP_IOAPIC, pin },
        },
        ..Default::default()
    }
}
