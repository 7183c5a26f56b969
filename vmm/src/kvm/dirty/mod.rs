//! Which guest pages were written: KVM's dirty log as the tiers ask for it.
//!
//! Climb it in this order: [`calls`] (KVM's calls), [`slots`] (what is logged, and what devices write), [`bitmap`] (a bitmap per memory slot),
//! [`ring`] and [`rings`] (a ring per vCPU).
//!
//! KVM logs what it lets a guest map writable. A page that it maps for a read, because it had no mapping of it, it maps writable too if this
//! process may write it, and logs it: such a read counts as a write. A page that stays mapped is logged only when it is written.
//!
//! Promises: both forms answer alike; what devices write is in both. Must never: keep a virtual machine alive: the tiers may outlive it, and
//! hold a [`LogHandle`] that answers an error from then on.

mod bitmap;
mod calls;
mod ring;
mod rings;
mod slots;

use std::ffi::c_ulong;
use std::fmt;
use std::io;
use std::sync::{Arc, Weak};

use kvm_bindings::{
    KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
    KVM_DIRTY_LOG_INITIALLY_SET, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, kvm_enable_cap,
};
use kvm_ioctls::{Kvm, VcpuFd};
use memtier::DirtyLog;

use self::bitmap::BitmapLog;
use self::ring::{ENTRY_BYTES, Ring};
use self::rings::RingLog;
use self::slots::Slots;
use super::{KvmError, Vm};
use crate::config::DirtyLogMode;

/// Gets every vCPU out of the guest once.
pub type LeaveGuest = Box<dyn Fn() + Send + Sync>;

const MANUAL: u32 = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET;

/// What a host's KVM has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// A bitmap that is cleared piece by piece, all set at first.
    pub bitmap: bool,
    /// Rings: the capability that switches them on, and the most bytes of one.
    ring: Option<(u32, u32)>,
}

impl Offer {
    /// What `kvm` has.
    pub fn new(kvm: &Kvm) -> Self {
        let has = |capability: u32| u32::try_from(kvm.check_extension_raw(c_ulong::from(capability))).unwrap_or(0);
        // The first is the one that says which memory ordering it wants; x86 has both.
        let rings = [KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_DIRTY_LOG_RING];
        Self {
            bitmap: has(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2) & MANUAL == MANUAL,
            ring: rings.into_iter().map(|ring| (ring, has(ring))).find(|(_, bytes)| *bytes > 0),
        }
    }

    /// The most bytes that a ring can have, if there are rings.
    pub fn ring_bytes(&self) -> Option<u32> {
        self.ring.map(|(_, bytes)| bytes)
    }
}

/// A virtual machine whose writes can be logged once its vCPUs are made.
pub struct Prepared {
    vm: Arc<Vm>,
    mode: DirtyLogMode,
}

impl Prepared {
    /// Tells KVM which form the log will have; to be called before vCPUs are made. `None` if this KVM has no bitmap that fits; a ring that was
    /// asked for and is not there is an error.
    pub fn new(kvm: &Kvm, vm: &Arc<Vm>, mode: DirtyLogMode) -> Result<Option<Self>, KvmError> {
        let offer = Offer::new(kvm);
        match mode {
            DirtyLogMode::Bitmap if !offer.bitmap => {
                tracing::info!("no dirty log: this host's KVM lacks KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2");
                return Ok(None);
            }
            DirtyLogMode::Bitmap => {
                enable(vm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, MANUAL.into())
                    .map_err(KvmError::call("KVM_ENABLE_CAP (KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2)"))?;
            }
            // Not with manual protection: pages that are all set at first are not protected at first, and a ring would not hear of them.
            DirtyLogMode::Ring { entries } => {
                let missing = KvmError::Missing { name: "KVM_CAP_DIRTY_LOG_RING", purpose: "the dirty ring" };
                let (capability, limit) = offer.ring.ok_or(missing)?;
                let bytes = u64::from(entries) * ENTRY_BYTES as u64;
                if bytes > u64::from(limit) {
                    let limit = u64::from(limit) / ENTRY_BYTES as u64;
                    return Err(KvmError::DirtyRing { entries, limit });
                }
                enable(vm, capability, bytes).map_err(KvmError::call("KVM_ENABLE_CAP (KVM_CAP_DIRTY_LOG_RING)"))?;
            }
        }
        Ok(Some(Self { vm: Arc::clone(vm), mode }))
    }

    /// The log of the machine with these vCPUs, all that there are, in order.
    pub fn connect(self, vcpus: &[VcpuFd], leave_guest: LeaveGuest) -> Result<KvmDirtyLog, KvmError> {
        let slots = Slots::new(self.vm);
        Ok(match self.mode {
            DirtyLogMode::Bitmap => KvmDirtyLog::Bitmap(Arc::new(BitmapLog::new(slots, leave_guest))),
            DirtyLogMode::Ring { entries } => {
                let rings = vcpus.iter().map(|vcpu| Ring::map(vcpu, entries)).collect::<io::Result<_>>();
                let rings = rings.map_err(|source| KvmError::Call { call: "mmap of a dirty ring", source })?;
                KvmDirtyLog::Ring(Arc::new(RingLog::new(slots, rings, leave_guest)))
            }
        })
    }
}

fn enable(vm: &Vm, capability: u32, argument: u64) -> Result<(), vmm_sys_util::errno::Error> {
    vm.fd().enable_cap(&kvm_enable_cap { cap: capability, args: [argument, 0, 0, 0], ..Default::default() })
}

/// The dirty log of one machine, in one of its forms.
#[derive(Debug)]
pub enum KvmDirtyLog {
    /// A bitmap per memory slot.
    Bitmap(Arc<BitmapLog>),
    /// A ring per vCPU.
    Ring(Arc<RingLog>),
}

impl KvmDirtyLog {
    /// What the tiers get.
    pub fn handle(&self) -> Arc<dyn DirtyLog> {
        let log: Weak<dyn DirtyLog> = match self {
            // The types are spelled out so that the weak references, not the strong ones, are made general.
            Self::Bitmap(log) => Arc::downgrade(log) as Weak<BitmapLog>,
            Self::Ring(log) => Arc::downgrade(log) as Weak<RingLog>,
        };
        Arc::new(LogHandle(log))
    }

    /// The rings, if it has that form.
    pub fn rings(&self) -> Option<&RingLog> {
        match self {
            Self::Bitmap(_) => None,
            Self::Ring(log) => Some(log),
        }
    }
}

/// A machine's log as seen by those who may outlive the machine.
struct LogHandle(Weak<dyn DirtyLog>);

impl LogHandle {
    fn log(&self) -> io::Result<Arc<dyn DirtyLog>> {
        self.0.upgrade().ok_or_else(|| io::Error::new(io::ErrorKind::NotConnected, "the guest is gone"))
    }
}

impl fmt::Debug for LogHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LogHandle").field(&self.0.upgrade()).finish()
    }
}

impl DirtyLog for LogHandle {
    fn start(&self) -> io::Result<()> {
        self.log()?.start()
    }

    fn stop(&self) -> io::Result<()> {
        // What is gone logs nothing.
        self.log().map_or(Ok(()), |log| log.stop())
    }

    fn written(&self, region: usize, bits: &mut [u64]) -> io::Result<()> {
        self.log()?.written(region, bits)
    }

    fn clear(&self, region: usize, first: u64, bits: &[u64]) -> io::Result<()> {
        self.log()?.clear(region, first, bits)
    }

    fn written_by_vcpu(&self) -> Vec<u64> {
        self.log().map_or_else(|_| Vec::new(), |log| log.written_by_vcpu())
    }
}
