//! Two signals: the kick that gets a vCPU thread out of the guest, and SIGBUS, with which the kernel tells a vCPU thread that the guest
//! touched a page that is gone for good.
//!
//! The kick cannot be lost: its handler runs on the vCPU's own thread and sets `immediate_exit`, so that an entry into the guest right after
//! it returns at once. The thread clears that request first and asks for its orders then, and whoever kicks gives the order first.
//!
//! Promises: a SIGBUS is kept only when it says "memory error, action required", and only while the thread is in the guest; every other one
//! ends the process as if there were no handler. Handlers do nothing but atomic stores and calls that are safe in handlers. Must never:
//! allocate or lock in a handler.

use std::cell::Cell;
use std::io;
use std::marker::PhantomData;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU64, Ordering, compiler_fence};

use kvm_ioctls::{VcpuExit, VcpuFd};
use libc::{c_int, c_void, siginfo_t};
use vmm_sys_util::errno;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler, unblock_signal};

/// What handlers touch of the thread that they interrupt.
struct Slot {
    /// `immediate_exit` in the vCPU's shared page.
    immediate_exit: AtomicPtr<u8>,
    /// Whether the thread is between the beginning and the end of `KVM_RUN`.
    in_guest: AtomicBool,
    /// The address of a memory error, 0 for none.
    memory_error: AtomicU64,
}

thread_local! {
    /// Constant initialisation and no destructor: reading it in a handler is a plain load.
    static CURRENT: Cell<*const Slot> = const { Cell::new(ptr::null()) };
}

fn kick_signal() -> c_int {
    SIGRTMIN()
}

/// Installs the handlers, once per process.
pub fn install() -> io::Result<()> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    let installed = INSTALLED.get_or_init(|| {
        register_signal_handler(kick_signal(), on_kick)
            .and_then(|()| register_signal_handler(libc::SIGBUS, on_bus_error))
            .map_err(|error| error.errno())
    });
    installed.map_err(io::Error::from_raw_os_error)
}

/// The calling thread's id, as the kernel knows it.
pub fn thread_id() -> u32 {
    // SAFETY: gettid has no preconditions.
    let id = unsafe { libc::gettid() };
    u32::try_from(id).expect("thread ids are positive")
}

/// Gets the thread `id` of this process out of the guest. A thread that has ended in the meantime is no error.
pub fn kick(id: u32) {
    // SAFETY: sends a signal whose handler is installed to a thread of this very process; no memory is involved.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), id, kick_signal()) };
}

/// The calling thread as one that runs a vCPU.
pub struct VcpuSignals {
    slot: Box<Slot>,
    // The handlers find the slot by thread: it must not move to another one.
    _not_send: PhantomData<*const ()>,
}

impl VcpuSignals {
    /// Lets the handlers reach `vcpu` from this thread on.
    pub fn attach(vcpu: &mut VcpuFd) -> io::Result<Self> {
        install()?;
        let immediate_exit = AtomicPtr::new(ptr::from_mut(&mut vcpu.get_kvm_run().immediate_exit));
        let slot = Box::new(Slot { immediate_exit, in_guest: AtomicBool::new(false), memory_error: AtomicU64::new(0) });
        CURRENT.set(&raw const *slot);
        // Whoever made this thread may have blocked the signals.
        for signal in [kick_signal(), libc::SIGBUS] {
            unblock_signal(signal).map_err(|error| io::Error::other(error.to_string()))?;
        }
        Ok(Self { slot, _not_send: PhantomData })
    }

    /// Forgets a kick. Ask for orders after it, never before.
    pub fn clear_exit_request(&self, vcpu: &mut VcpuFd) {
        vcpu.set_kvm_immediate_exit(0);
        // The store must not move behind the look at the orders. Only this thread's own handler races with it, so the compiler is all
        // that has to be told.
        compiler_fence(Ordering::SeqCst);
    }

    /// Makes the next entry come back at once, after finishing what the last exit left to do.
    pub fn request_exit(&self, vcpu: &mut VcpuFd) {
        vcpu.set_kvm_immediate_exit(1);
    }

    /// Enters the guest.
    pub fn run<'a>(&self, vcpu: &'a mut VcpuFd) -> Result<VcpuExit<'a>, errno::Error> {
        // Relaxed, here and below: read only by this thread's own handler; the system call in between keeps the stores in their order.
        self.slot.in_guest.store(true, Ordering::Relaxed);
        let exit = vcpu.run();
        self.slot.in_guest.store(false, Ordering::Relaxed);
        exit
    }

    /// Where in this process's memory the guest met a memory error during the last [`Self::run`], if it did.
    pub fn take_memory_error(&self) -> Option<u64> {
        match self.slot.memory_error.swap(0, Ordering::Relaxed) {
            0 => None,
            address => Some(address),
        }
    }
}

impl Drop for VcpuSignals {
    fn drop(&mut self) {
        CURRENT.set(ptr::null());
        // The slot may not be freed before the handlers stop seeing it.
        compiler_fence(Ordering::SeqCst);
    }
}

/// The interrupted thread's slot, if it runs a vCPU.
fn current() -> Option<&'static Slot> {
    let slot = CURRENT.get();
    // SAFETY: a pointer that is not null was stored by `attach` on this thread and is cleared, on this thread, before its box is freed. The
    // reference is used only inside the handler, which runs on this thread.
    unsafe { slot.as_ref() }
}

extern "C" fn on_kick(_signal: c_int, _info: *mut siginfo_t, _context: *mut c_void) {
    if let Some(slot) = current() {
        let flag = slot.immediate_exit.load(Ordering::Relaxed);
        // SAFETY: points into the vCPU's shared page, which is mapped while the slot can be found (`VcpuSignals` is dropped before its
        // vCPU). KVM reads it, only this thread writes it.
        unsafe { AtomicU8::from_ptr(flag) }.store(1, Ordering::Relaxed);
    }
}

extern "C" fn on_bus_error(signal: c_int, info: *mut siginfo_t, _context: *mut c_void) {
    const BUS_MCEERR_AR: c_int = 4;
    // SAFETY: the kernel hands a valid siginfo to a handler installed with SA_SIGINFO.
    let code = unsafe { (*info).si_code };
    if code == BUS_MCEERR_AR
        && let Some(slot) = current()
        && slot.in_guest.load(Ordering::Relaxed)
    {
        // SAFETY: as above; for this code the kernel fills in the address.
        let address = unsafe { (*info).si_addr() };
        slot.memory_error.store(address as u64, Ordering::Relaxed);
        return;
    }
    // SAFETY: both calls are safe in handlers. The signal is blocked while its handler runs: it is delivered, and ends the process, when
    // this returns.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kick_of_a_thread_without_vcpu_changes_nothing() {
        install().expect("handlers");
        kick(thread_id());
        assert!(current().is_none());
    }
}
