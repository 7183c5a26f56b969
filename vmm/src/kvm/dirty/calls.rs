//! KVM's calls about written pages that the wrapper crate lacks, or has only in a form that allocates.
//!
//! Numbers and structures from `include/uapi/linux/kvm.h`.
//!
//! Promises: no call reads or writes beyond the slices it is given. Must never: decide what is cleared, or when.

use std::io;

use kvm_bindings::{
    KVMIO, kvm_clear_dirty_log, kvm_clear_dirty_log__bindgen_ty_1, kvm_dirty_log, kvm_dirty_log__bindgen_ty_1,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::ioctl::{ioctl, ioctl_with_ref};
use vmm_sys_util::{ioctl_io_nr, ioctl_iow_nr, ioctl_iowr_nr};

ioctl_iow_nr!(KVM_GET_DIRTY_LOG, KVMIO, 0x42, kvm_dirty_log);
ioctl_iowr_nr!(KVM_CLEAR_DIRTY_LOG, KVMIO, 0xc0, kvm_clear_dirty_log);
ioctl_io_nr!(KVM_RESET_DIRTY_RINGS, KVMIO, 0xc7);

/// Pages in a word of a bitmap.
pub const WORD_PAGES: u64 = u64::BITS as u64;

/// Words that a bitmap of `pages` pages has.
pub fn words(pages: u64) -> usize {
    usize::try_from(pages.div_ceil(WORD_PAGES)).expect("addresses have 64 bits")
}

/// Overwrites `bits` with slot `slot`'s bitmap; the slot has `pages` pages. Clears nothing where protection is manual.
///
/// # Panics
/// If `bits` is shorter than the slot's bitmap.
pub fn get_dirty_log(vm: &VmFd, slot: u32, pages: u64, bits: &mut [u64]) -> io::Result<()> {
    assert!(bits.len() >= words(pages), "a bitmap of {} words for {pages} pages", bits.len());
    let dirty_bitmap = bits.as_mut_ptr().cast();
    let log = kvm_dirty_log { slot, padding1: 0, __bindgen_anon_1: kvm_dirty_log__bindgen_ty_1 { dirty_bitmap } };
    // SAFETY: the kernel writes as many bytes as the slot has pages, divided by 8 and rounded up to whole words. `pages` is the slot's number
    // of pages (every caller takes both from the memory the slots were made of), and `bits` is at least that long.
    done(unsafe { ioctl_with_ref(vm, KVM_GET_DIRTY_LOG(), &log) })
}

/// Clears pages of slot `slot`: those of the `pages` pages from `first` on whose bit in `bits` is set. `first` is a multiple of 64, and so is
/// `pages` unless it ends with the slot.
///
/// # Panics
/// If `bits` has fewer bits than `pages`.
pub fn clear_dirty_log(vm: &VmFd, slot: u32, first: u64, pages: u32, bits: &[u64]) -> io::Result<()> {
    assert!(bits.len() >= words(u64::from(pages)), "a bitmap of {} words for {pages} pages", bits.len());
    let dirty_bitmap = bits.as_ptr().cast_mut().cast();
    let log = kvm_clear_dirty_log {
        slot,
        num_pages: pages,
        first_page: first,
        __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 { dirty_bitmap },
    };
    // SAFETY: the kernel reads `pages` bits, rounded up to whole words, and `bits` is at least that long.
    done(unsafe { ioctl_with_ref(vm, KVM_CLEAR_DIRTY_LOG(), &log) })
}

/// Protects all pages of harvested ring entries again and frees the entries.
pub fn reset_dirty_rings(vm: &VmFd) -> io::Result<()> {
    loop {
        // SAFETY: takes no argument; the rings belong to the kernel.
        match done(unsafe { ioctl(vm, KVM_RESET_DIRTY_RINGS()) }) {
            // Newer kernels stop halfway for a signal, which is handled by now.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

fn done(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn call_numbers_are_the_kernels() {
        let numbers = [KVM_GET_DIRTY_LOG(), KVM_CLEAR_DIRTY_LOG(), KVM_RESET_DIRTY_RINGS()];
        assert_eq!(numbers.map(u64::from), [0x4010_ae42, 0xc018_aec0, 0xaec7]);
    }

    #[test]
    fn bitmaps_have_whole_words() {
        assert_eq!([0, 1, 64, 65].map(words), [0, 1, 1, 2]);
    }
}
