//! What the tiers ask of the hypervisor: which guest pages were written.
//!
//! Promises: no hypervisor's type is in here, so that any VMM can answer. Must never: be asked on the fault path.

use std::fmt::Debug;
use std::io;

/// A log of guest pages written, by vCPUs and by devices alike (KVM: `Documentation/virt/kvm/api.rst`, `KVM_GET_DIRTY_LOG` and the dirty ring).
///
/// Regions are counted as the [`RegionSpec`](crate::RegionSpec)s that the tiers were made from; pages within a region from 0. Bit `i % 64` of
/// word `i / 64` is page `i`, a page being [`PAGE_SIZE`](crate::units::PAGE_SIZE) bytes whatever pages the host uses.
pub trait DirtyLog: Send + Sync + Debug {
    /// Begins to log. All pages count as written until they are cleared for the first time. Nothing happens if it logs already.
    fn start(&self) -> io::Result<()>;

    /// Ends logging; what was logged is forgotten. Nothing happens if it does not log.
    fn stop(&self) -> io::Result<()>;

    /// Sets the bits of the pages of `region` written since each was last cleared, leaving other bits as they are. Clears nothing: asked
    /// again, it answers the same and more. `bits` has a bit for every page of the region.
    fn written(&self, region: usize, bits: &mut [u64]) -> io::Result<()>;

    /// Clears pages: from page `first` on, a multiple of 64, those whose bit is set. A page written after its bit was read by
    /// [`DirtyLog::written`] and before this call may lose that write from the log only if its bit is set here.
    fn clear(&self, region: usize, first: u64, bits: &[u64]) -> io::Result<()>;

    /// Pages that each vCPU was seen writing so far, a page counted once per [`DirtyLog::clear`]; empty where the log does not tell vCPUs
    /// apart.
    fn written_by_vcpu(&self) -> Vec<u64> {
        Vec::new()
    }
}
