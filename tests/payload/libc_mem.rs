//! The memory functions that compiled code expects to find.
//!
//! Promises: C's contracts. Must never: be written in a way that the compiler turns into a call to itself; hence string instructions.

use core::arch::asm;

/// C's `memcpy`.
///
/// # Safety
/// Both ranges are valid for `count` bytes and do not overlap.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    // SAFETY: the caller vouches for the ranges; the direction flag is clear by the calling convention.
    unsafe {
        asm!("rep movsb", inout("rcx") count => _, inout("rdi") to => _, inout("rsi") from => _, options(nostack, preserves_flags))
    }
    to
}

/// C's `memmove`.
///
/// # Safety
/// Both ranges are valid for `count` bytes; they may overlap.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= count {
        // SAFETY: copying forwards reads every byte before writing over it.
        return unsafe { memcpy(to, from, count) };
    }
    // SAFETY: `to` lies within the source, so the copy runs backwards, from the last byte; `count` is not 0 here.
    unsafe {
        asm!(
            "std",
            "rep movsb",
            "cld",
            inout("rcx") count => _,
            inout("rdi") to.add(count - 1) => _,
            inout("rsi") from.add(count - 1) => _,
            options(nostack)
        );
    }
    to
}

/// C's `memset`.
///
/// # Safety
/// The range is valid for `count` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memset(to: *mut u8, byte: i32, count: usize) -> *mut u8 {
    // SAFETY: the caller vouches for the range.
    unsafe {
        asm!("rep stosb", inout("rcx") count => _, inout("rdi") to => _, in("al") byte as u8, options(nostack, preserves_flags))
    }
    to
}

/// C's `memcmp`.
///
/// # Safety
/// Both ranges are valid for `count` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcmp(one: *const u8, other: *const u8, count: usize) -> i32 {
    for index in 0..count {
        // SAFETY: below `count`; volatile keeps the compiler from recognising the loop as a call to this function.
        let (a, b) = unsafe { (one.add(index).read_volatile(), other.add(index).read_volatile()) };
        if a != b {
            return i32::from(a) - i32::from(b);
        }
    }
    0
}
