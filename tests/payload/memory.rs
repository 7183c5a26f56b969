//! Guest memory by address: ring 3 is identity-mapped, so an address is a guest physical address.
//!
//! Promises: every access happens, once, in program order (volatile; x86 keeps stores in order among themselves, and loads too). Must
//! never: make Rust references into workload memory, which other vCPUs and the host change at any time.

/// The 64-bit word at `address`.
#[inline(always)]
pub fn read(address: u64) -> u64 {
    // SAFETY: everything in guest memory is plain words that any value fits; an address outside raises an exception, which the boot code
    // reports. The compiler can't assume anything about a volatile access.
    unsafe { core::ptr::read_volatile(address as *const u64) }
}

/// Writes the 64-bit word at `address`.
#[inline(always)]
pub fn write(address: u64, value: u64) {
    // SAFETY: as for `read`; the image's own code and data lie below the addresses that commands name.
    unsafe { core::ptr::write_volatile(address as *mut u64, value) }
}

/// The 32-bit word at `address`.
#[inline(always)]
pub fn read_u32(address: u64) -> u32 {
    // SAFETY: as for `read`.
    unsafe { core::ptr::read_volatile(address as *const u32) }
}

/// Writes the 32-bit word at `address`.
#[inline(always)]
pub fn write_u32(address: u64, value: u32) {
    // SAFETY: as for `write`.
    unsafe { core::ptr::write_volatile(address as *mut u32, value) }
}

/// The time stamp counter.
#[inline(always)]
pub fn cycles() -> u64 {
    // SAFETY: reads a counter; every x86-64 CPU has it.
    unsafe { core::arch::x86_64::_rdtsc() }
}
