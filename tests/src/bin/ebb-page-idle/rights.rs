//! Gives rights up, one after the other.
//!
//! Must never: be called before everything that needs them is done.

use std::io;

const CAP_DAC_OVERRIDE: u32 = 1;
const CAP_DAC_READ_SEARCH: u32 = 2;
const CAP_SYS_ADMIN: u32 = 21;

/// Root may still open everything, but see no host frame numbers.
pub fn give_up_admin() -> io::Result<()> {
    keep_all_but(&[CAP_SYS_ADMIN])
}

/// Root's files are closed, too.
pub fn give_up_files() -> io::Result<()> {
    keep_all_but(&[CAP_SYS_ADMIN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH])?;
    // SAFETY: changes this thread's identity on filesystems, nothing in memory.
    unsafe { libc::setfsuid(1000) };
    Ok(())
}

/// From `include/uapi/linux/capability.h`.
#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Sets {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

fn keep_all_but(gone: &[u32]) -> io::Result<()> {
    let header = Header { version: 0x2008_0522, pid: 0 };
    let mut sets = [Sets { effective: 0, permitted: 0, inheritable: 0 }; 2];
    // SAFETY: version 3 of the call takes and fills two sets.
    if unsafe { libc::syscall(libc::SYS_capget, &raw const header, sets.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    for capability in gone {
        sets[0].effective &= !(1 << capability);
    }
    // SAFETY: as above.
    match unsafe { libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
