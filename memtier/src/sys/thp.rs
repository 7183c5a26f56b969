//! Transparent huge pages of a shared mapping: wanted, made, and what the host allows (`Documentation/admin-guide/mm/transhuge.rst`).
//!
//! Promises: no contents change. Must never: be relied upon for memory to be huge; the kernel decides.

use std::io;

use crate::units::Hva;

/// Where the host says whether shared memory may have huge pages.
pub const SHMEM_ENABLED: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";

/// Lets the kernel use huge pages for a mapping.
pub fn want(start: Hva, len: u64) -> io::Result<()> {
    advise(start, len, libc::MADV_HUGEPAGE)
}

/// Makes huge pages of what is in a mapping now (`MADV_COLLAPSE`, Linux 6.1). Works also where the host makes none by itself, unless it says
/// `deny`.
pub fn collapse(start: Hva, len: u64) -> io::Result<()> {
    // From `include/uapi/asm-generic/mman-common.h`.
    const MADV_COLLAPSE: libc::c_int = 25;
    advise(start, len, MADV_COLLAPSE)
}

fn advise(start: Hva, len: u64, advice: libc::c_int) -> io::Result<()> {
    let len = usize::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: both kinds of advice change how the kernel backs the range, not what is in it.
    match unsafe { libc::madvise(start.0 as *mut libc::c_void, len, advice) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The word in brackets: what the host does for shared memory that asks.
pub fn shmem_enabled() -> io::Result<String> {
    let words = std::fs::read_to_string(SHMEM_ENABLED)?;
    Ok(chosen(&words).unwrap_or_default().to_owned())
}

fn chosen(words: &str) -> Option<&str> {
    words.split_whitespace().find_map(|word| word.strip_prefix('[')?.strip_suffix(']'))
}

/// Whether memory that asks for huge pages gets them when it is first touched.
pub fn are_made_on_touch() -> bool {
    shmem_enabled().is_ok_and(|word| matches!(word.as_str(), "always" | "within_size" | "advise" | "force"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_in_brackets_is_the_one_in_force() {
        assert_eq!(chosen("always within_size advise [never] deny force\n"), Some("never"));
        assert_eq!(chosen("always"), None);
    }
}
