//! A vCPU's thread: into the guest, out of it, doing what the guest asked for.
//!
//! Promises: the loop ends with the guest or with an order to stop; before it is held, the last instruction that left the guest is complete.
//! Nothing that a guest does makes it panic. Must never: hold a lock while the guest runs.

use std::sync::Arc;

use devices::{Bus, PowerRequest, PowerSignal};
use kvm_bindings::KVM_EXIT_DIRTY_RING_FULL;
use kvm_ioctls::{VcpuExit, VcpuFd};
use memtier::Memtier;
use memtier::units::Gfn;
use vmm_sys_util::errno;

use super::exit;
use super::gate::{Entered, Gate, Order};
use super::signals::{self, VcpuSignals};
use crate::kvm::dirty::KvmDirtyLog;
use crate::kvm::{MachineCheck, MachineCheckSupport, Restart, Vm};
use crate::machine::ExitReason;

/// What all vCPU threads of a machine share.
pub struct Shared {
    /// Where they are held.
    pub gate: Arc<Gate>,
    /// Devices on I/O ports.
    pub ports: Bus,
    /// Devices in memory.
    pub mmio: Bus,
    /// How devices end the guest.
    pub power: PowerSignal,
    /// The machine that the vCPUs belong to.
    pub vm: Arc<Vm>,
    /// The tiers, if there are any.
    pub memtier: Option<Arc<Memtier>>,
    /// What is known of pages written, if anybody may ask.
    pub dirty_log: Option<KvmDirtyLog>,
    /// How guests get machine checks.
    pub machine_checks: Option<MachineCheckSupport>,
}

/// A vCPU, ready to run.
pub struct Vcpu {
    index: u8,
    // Declared before `shared`: closed before the machine that it belongs to.
    fd: VcpuFd,
    shared: Arc<Shared>,
    /// The last memory error: which page, at which instruction.
    suspect: Option<(u64, u64)>,
}

/// What a trip into the guest came to.
enum Step {
    /// Go on.
    Continue,
    /// A signal came; look at the orders.
    Interrupted,
    /// The guest has ended.
    Ended(ExitReason),
}

/// What to do after looking at an exit, once nothing borrows the vCPU any more.
enum Handled {
    Step(Step),
    Ports { port: u16, data: *mut u8, len: usize, read: bool },
    InternalError,
    MemoryError { gpa: u64, restart: Restart },
    Failed(String),
}

impl Vcpu {
    /// vCPU `index` of the machine that `shared` belongs to.
    pub fn new(index: u8, fd: VcpuFd, shared: Arc<Shared>) -> Self {
        Self { index, fd, shared, suspect: None }
    }

    /// Runs the guest on the calling thread until it ends (then why) or until it is told to stop.
    pub fn run(mut self) -> Option<ExitReason> {
        let shared = Arc::clone(&self.shared);
        let signals = match VcpuSignals::attach(&mut self.fd) {
            Ok(signals) => signals,
            Err(error) => return Some(self.failed(&format!("cannot receive signals: {error}"))),
        };
        if let Some(memtier) = &shared.memtier {
            memtier.set_vcpu_thread(u16::from(self.index), signals::thread_id());
        }
        let entered = shared.gate.enter();
        loop {
            signals.clear_exit_request(&mut self.fd);
            match shared.gate.order() {
                Order::Run => {
                    if let Step::Ended(reason) = self.step(&signals, &entered) {
                        return Some(reason);
                    }
                }
                Order::Pause => {
                    if let Some(reason) = self.settle(&signals, &entered) {
                        return Some(reason);
                    }
                    entered.hold();
                    // So that the guest's watchdogs do not take the pause for a hang. Only guests with KVM's clock can be told.
                    let _ = self.fd.kvmclock_ctrl();
                }
                Order::Stop => return None,
            }
        }
    }

    /// Completes what the last exit left to be completed by the next entry, without running the guest. Answers why if the guest ends.
    fn settle(&mut self, signals: &VcpuSignals, entered: &Entered<'_>) -> Option<ExitReason> {
        loop {
            signals.request_exit(&mut self.fd);
            match self.step(signals, entered) {
                Step::Continue => {}
                Step::Interrupted => return None,
                Step::Ended(reason) => return Some(reason),
            }
        }
    }

    /// One trip into the guest.
    fn step(&mut self, signals: &VcpuSignals, entered: &Entered<'_>) -> Step {
        let handled = match entered.in_guest(|| signals.run(&mut self.fd)) {
            Ok(exit) => handle(exit, &self.shared),
            Err(error) => self.handle_error(error, signals),
        };
        match handled {
            Handled::Step(step) => step,
            Handled::Ports { port, data, len, read } => self.access_ports(port, data, len, read),
            Handled::InternalError => {
                let what = exit::internal_error(&mut self.fd);
                Step::Ended(self.failed(&what))
            }
            Handled::MemoryError { gpa, restart } => self.memory_error(gpa, restart),
            Handled::Failed(text) => Step::Ended(self.failed(&(text + &exit::location(&self.fd)))),
        }
    }

    fn handle_error(&self, error: errno::Error, signals: &VcpuSignals) -> Handled {
        if let Some(address) = signals.take_memory_error() {
            return match self.shared.vm.ram().guest_address(address) {
                Some(gpa) => Handled::MemoryError { gpa, restart: Restart::Possible },
                None => Handled::Failed(format!("memory error at {address:#x}, outside guest memory")),
            };
        }
        match error.errno() {
            libc::EINTR => Handled::Step(Step::Interrupted),
            // A vCPU that waits for its start was woken for something else.
            libc::EAGAIN => Handled::Step(Step::Continue),
            _ => Handled::Failed(format!("KVM could not run it: {error}")),
        }
    }

    fn access_ports(&mut self, port: u16, data: *mut u8, len: usize, read: bool) -> Step {
        let size = exit::port_access_size(&mut self.fd);
        // SAFETY: `data` and `len` are the slice that the exit of a moment ago carried, in the page shared with KVM, which is mapped as long
        // as `self.fd` is open; nobody else borrows it and the vCPU is not running.
        let data = unsafe { std::slice::from_raw_parts_mut(data, len) };
        for access in data.chunks_mut(size) {
            if read {
                self.shared.ports.read(u64::from(port), access);
            } else {
                self.shared.ports.write(u64::from(port), access);
            }
        }
        after_write(&self.shared)
    }

    /// KVM could not reach a page of the guest's own memory: it is gone for good. The guest gets a machine check at the instruction that
    /// touched it.
    fn memory_error(&mut self, gpa: u64, restart: Restart) -> Step {
        // KVM also signals when it fetched a page on behalf of a task that sleeps meanwhile (asynchronous page faults); a machine check
        // would then hit whoever runs now. So the guest goes on once: an instruction that really touched the page does it again at once.
        if restart == Restart::Possible {
            let here = self.fd.get_regs().ok().map(|regs| (gpa, regs.rip));
            let before = std::mem::replace(&mut self.suspect, here);
            if here.is_some() && before != here {
                return Step::Continue;
            }
            self.suspect = None;
        }
        match self.give_machine_check(gpa, restart) {
            Ok(()) => Step::Continue,
            Err(why) => {
                let how = self.how_lost(gpa);
                Step::Ended(self.failed(&format!("it {why}, and touched guest memory at {gpa:#x}, which is {how}")))
            }
        }
    }

    /// Tells the guest, or why it cannot be told.
    fn give_machine_check(&self, gpa: u64, restart: Restart) -> Result<(), String> {
        let Some(machine_checks) = self.shared.machine_checks else {
            return Err("can get no machine checks from this KVM".into());
        };
        match machine_checks.inject(&self.fd, gpa, restart) {
            Ok(MachineCheck::Injected) => {
                let how = self.how_lost(gpa);
                tracing::error!("vCPU {} gets a machine check: guest memory at {gpa:#x} is {how}", self.index);
                Ok(())
            }
            Ok(MachineCheck::NotTaken) => Err("takes no machine check".into()),
            Err(error) => Err(format!("could not be told: {error}")),
        }
    }

    /// Which of two ways it was lost in, for people.
    fn how_lost(&self, gpa: u64) -> &'static str {
        match &self.shared.memtier {
            Some(memtier) if memtier.is_poisoned(Gfn::containing(gpa)) => "lost: it could not be brought back",
            _ => "lost",
        }
    }

    fn failed(&self, what: &str) -> ExitReason {
        ExitReason::Failed(format!("vCPU {}: {what}", self.index))
    }
}

/// Everything that can be handled while the exit still borrows the vCPU.
fn handle(exit: VcpuExit<'_>, shared: &Shared) -> Handled {
    match exit {
        VcpuExit::IoIn(port, data) => Handled::Ports { port, data: data.as_mut_ptr(), len: data.len(), read: true },
        VcpuExit::IoOut(port, data) => {
            Handled::Ports { port, data: data.as_ptr().cast_mut(), len: data.len(), read: false }
        }
        // An access to RAM comes here when KVM had to emulate it and could not reach the page. It will be completed with whatever is in the
        // exit's data, so that there is no going back.
        VcpuExit::MmioRead(gpa, _) | VcpuExit::MmioWrite(gpa, _) if shared.vm.ram().contains(gpa) => {
            Handled::MemoryError { gpa, restart: Restart::Impossible }
        }
        VcpuExit::MmioRead(address, data) => {
            shared.mmio.read(address, data);
            Handled::Step(Step::Continue)
        }
        VcpuExit::MmioWrite(address, data) => {
            shared.mmio.write(address, data);
            Handled::Step(after_write(shared))
        }
        VcpuExit::Shutdown => Handled::Step(Step::Ended(ExitReason::TripleFault)),
        VcpuExit::SystemEvent(kind, _) => system_event(kind),
        VcpuExit::Intr | VcpuExit::IrqWindowOpen => Handled::Step(Step::Interrupted),
        VcpuExit::InternalError => Handled::InternalError,
        VcpuExit::FailEntry(reason, cpu) => {
            Handled::Failed(format!("the processor refused to enter the guest (reason {reason:#x}, host CPU {cpu})"))
        }
        VcpuExit::MemoryFault { gpa, .. } => Handled::Failed(format!("KVM cannot map guest memory at {gpa:#x}")),
        VcpuExit::Unsupported(KVM_EXIT_DIRTY_RING_FULL) => make_room(shared),
        // With the interrupt controllers in the kernel, so is waiting for an interrupt.
        VcpuExit::Hlt => Handled::Failed("KVM left a halted vCPU to us".into()),
        other => Handled::Failed(format!("unexpected exit {other:?}")),
    }
}

/// KVM does not let the vCPU go on before there is room in its dirty ring.
fn make_room(shared: &Shared) -> Handled {
    let Some(rings) = shared.dirty_log.as_ref().and_then(KvmDirtyLog::rings) else {
        return Handled::Failed("KVM reported a full dirty ring, and there is none".into());
    };
    match rings.make_room() {
        Ok(()) => Handled::Step(Step::Continue),
        Err(error) => Handled::Failed(format!("its full dirty ring could not be reset: {error}")),
    }
}

/// A write may have reached a register that ends the guest.
fn after_write(shared: &Shared) -> Step {
    match shared.power.requested() {
        Some(PowerRequest::PowerOff) => Step::Ended(ExitReason::PowerOff),
        Some(PowerRequest::Reset) => Step::Ended(ExitReason::Reset),
        None => Step::Continue,
    }
}

fn system_event(kind: u32) -> Handled {
    match kind {
        kvm_bindings::KVM_SYSTEM_EVENT_SHUTDOWN => Handled::Step(Step::Ended(ExitReason::PowerOff)),
        kvm_bindings::KVM_SYSTEM_EVENT_RESET => Handled::Step(Step::Ended(ExitReason::Reset)),
        kvm_bindings::KVM_SYSTEM_EVENT_CRASH => Handled::Failed("the guest reported a crash".into()),
        other => Handled::Failed(format!("KVM reported system event {other}")),
    }
}
