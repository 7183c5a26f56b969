//! userfaultfd by raw ioctl: open, register, write-protect, copy, zero, poison, wake, read events.
//!
//! Promises: layouts and ioctl numbers are those of `include/uapi/linux/userfaultfd.h`, checked at compile time and in tests; EAGAIN (the
//! mapping is changing) is retried here and never mistaken for success. Must never: dereference a guest address.
//!
//! These calls change what other threads find at the ranges they name. All of them are safe in Rust's sense because the ranges are guest
//! memory, which this process reaches only through volatile access or system calls.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::page::Page;
use crate::sys::mem::NoAccess;
use crate::units::{FrameSize, Hva, PAGE_SIZE};

/// Features that tiering can't do without, whatever backs guest memory.
const ALWAYS_NEEDED: u64 =
    features::PAGEFAULT_FLAG_WP | features::WP_HUGETLBFS_SHMEM | features::THREAD_ID | features::POISON;

const fn needed(size: FrameSize) -> u64 {
    match size {
        FrameSize::Small => ALWAYS_NEEDED | features::MISSING_SHMEM,
        FrameSize::Huge => ALWAYS_NEEDED | features::MISSING_HUGETLBFS,
    }
}

/// Feature bits of `UFFDIO_API`.
pub mod features {
    /// Write-protect faults.
    pub const PAGEFAULT_FLAG_WP: u64 = 1 << 0;
    /// Missing faults on hugetlbfs.
    pub const MISSING_HUGETLBFS: u64 = 1 << 4;
    /// Missing faults on shared memory.
    pub const MISSING_SHMEM: u64 = 1 << 5;
    /// Events carry the thread that faulted.
    pub const THREAD_ID: u64 = 1 << 8;
    /// Write-protection of shared memory.
    pub const WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
    /// `UFFDIO_POISON` (Linux 6.6).
    pub const POISON: u64 = 1 << 14;

    /// The names of the bits in `bits` that are known here.
    pub fn names(bits: u64) -> String {
        let all = [
            (PAGEFAULT_FLAG_WP, "PAGEFAULT_FLAG_WP"),
            (MISSING_HUGETLBFS, "MISSING_HUGETLBFS"),
            (MISSING_SHMEM, "MISSING_SHMEM"),
            (THREAD_ID, "THREAD_ID"),
            (WP_HUGETLBFS_SHMEM, "WP_HUGETLBFS_SHMEM"),
            (POISON, "POISON"),
        ];
        let names: Vec<_> = all.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, name)| *name).collect();
        names.join(" ")
    }
}

/// Why userfaultfd can't be used, or a call on it failed.
#[derive(Debug, thiserror::Error)]
pub enum UffdError {
    /// Neither `/dev/userfaultfd` nor the system call let us in.
    #[error(
        "no permission for userfaultfd: give read access to /dev/userfaultfd, or CAP_SYS_PTRACE, or set vm.unprivileged_userfaultfd=1"
    )]
    Permission(#[source] io::Error),
    /// It could not be opened for another reason.
    #[error("userfaultfd can't be opened")]
    Open(#[source] io::Error),
    /// The kernel lacks features.
    #[error("this kernel's userfaultfd lacks {}; Linux 6.6 or later has them", features::names(*missing))]
    Features {
        /// Bits of [`features`] that are missing.
        missing: u64,
    },
    /// Transparent huge pages could not be switched off for guest memory.
    #[error("huge pages can't be switched off for guest memory")]
    HugePages(#[source] io::Error),
    /// No address space for what goes with it.
    #[error("no address space for userfaultfd's companion mapping")]
    NoAddresses(#[source] io::Error),
    /// A page that should be missing is there and can't be replaced.
    #[error("a page is at {page} that could not be given back")]
    Occupied {
        /// Its first byte.
        page: Hva,
    },
    /// A call failed.
    #[error("{call} of {len} bytes at {start} failed")]
    Call {
        /// The ioctl's name.
        call: &'static str,
        /// First byte.
        start: Hva,
        /// Length in bytes.
        len: u64,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

const UFFD_API: u64 = 0xaa;
const MODE_MISSING: u64 = 1 << 0;
const MODE_WP: u64 = 1 << 1;
const WRITEPROTECT_WP: u64 = 1 << 0;
const WRITEPROTECT_DONTWAKE: u64 = 1 << 1;
const EVENT_PAGEFAULT: u8 = 0x12;
const FAULT_FLAG_WRITE: u64 = 1 << 0;
const FAULT_FLAG_WP: u64 = 1 << 1;
/// `UFFD_USER_MODE_ONLY` is deliberately absent: KVM and system calls fault on guest memory from kernel mode.
const OPEN_FLAGS: libc::c_int = libc::O_CLOEXEC | libc::O_NONBLOCK;

const READ: u64 = 2;
const READ_WRITE: u64 = 3;
const fn request(direction: u64, number: u64, size: usize) -> u64 {
    direction << 30 | (size as u64) << 16 | 0xaa << 8 | number
}

const API: u64 = request(READ_WRITE, 0x3f, size_of::<ApiArg>());
const REGISTER: u64 = request(READ_WRITE, 0x00, size_of::<RegisterArg>());
const UNREGISTER: u64 = request(READ, 0x01, size_of::<RangeArg>());
const WAKE: u64 = request(READ, 0x02, size_of::<RangeArg>());
const COPY: u64 = request(READ_WRITE, 0x03, size_of::<CopyArg>());
const ZEROPAGE: u64 = request(READ_WRITE, 0x04, size_of::<ZeroArg>());
const WRITEPROTECT: u64 = request(READ_WRITE, 0x06, size_of::<WriteProtectArg>());
const POISON: u64 = request(READ_WRITE, 0x08, size_of::<ZeroArg>());
const NEW: u64 = request(0, 0x00, 0);

#[repr(C)]
struct ApiArg {
    api: u64,
    features: u64,
    ioctls: u64,
}
#[repr(C)]
struct RangeArg {
    start: u64,
    len: u64,
}
#[repr(C)]
struct RegisterArg {
    range: RangeArg,
    mode: u64,
    ioctls: u64,
}
#[repr(C)]
struct CopyArg {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copied: i64,
}
/// `uffdio_zeropage` and `uffdio_poison` have one layout.
#[repr(C)]
struct ZeroArg {
    range: RangeArg,
    mode: u64,
    done: i64,
}
#[repr(C)]
struct WriteProtectArg {
    range: RangeArg,
    mode: u64,
}
#[repr(C)]
struct Message {
    event: u8,
    reserved: [u8; 7],
    flags: u64,
    address: u64,
    thread: u32,
    pad: u32,
}
const _: () = assert!(size_of::<ApiArg>() == 24 && size_of::<RangeArg>() == 16 && size_of::<RegisterArg>() == 32);
const _: () = assert!(size_of::<CopyArg>() == 40 && size_of::<ZeroArg>() == 32 && size_of::<WriteProtectArg>() == 24);
const _: () = assert!(size_of::<Message>() == 32);

/// A page fault that waits for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// First byte of the page of 4 KiB, or of the huge page, that faulted in the guest mapping.
    pub page: Hva,
    /// A write to a write-protected page; otherwise the page is missing.
    pub write_protect: bool,
    /// A write.
    pub write: bool,
    /// The thread that faulted.
    pub thread: u32,
}

/// What filling a page came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled {
    /// The page is there with the bytes given, waiters are awake.
    Done,
    /// A page was there before; nothing was changed and nobody woken.
    Exists,
}

/// An open userfaultfd.
#[derive(Debug)]
pub struct Uffd {
    fd: OwnedFd,
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Uffd {
    /// Opens one that sees faults of user and kernel mode, non-blocking, and agrees on the features needed for memory with frames of this
    /// size: shared memory, or hugetlbfs.
    pub fn open(size: FrameSize) -> Result<Self, UffdError> {
        let uffd = Self { fd: open_fd()? };
        let offered = Self { fd: open_fd()? }.handshake(0)?;
        let needed = needed(size);
        let missing = needed & !offered;
        if missing != 0 {
            return Err(UffdError::Features { missing });
        }
        uffd.handshake(needed)?;
        Ok(uffd)
    }

    fn handshake(&self, features: u64) -> Result<u64, UffdError> {
        let mut arg = ApiArg { api: UFFD_API, features, ioctls: 0 };
        // SAFETY: the argument has the layout that UFFDIO_API reads and writes.
        unsafe { ioctl(self.raw(), API, &mut arg) }.map_err(UffdError::Open)?;
        Ok(arg.features)
    }

    fn raw(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Registers a mapped range for write-protect faults; with `missing`, for missing pages too. Widening a registered range is allowed.
    pub fn register(&self, start: Hva, len: u64, missing: bool) -> Result<(), UffdError> {
        let mode = MODE_WP | if missing { MODE_MISSING } else { 0 };
        let mut arg = RegisterArg { range: RangeArg { start: start.0, len }, mode, ioctls: 0 };
        // SAFETY: the argument has the layout that UFFDIO_REGISTER reads and writes.
        unsafe { ioctl(self.raw(), REGISTER, &mut arg) }.map_err(failed("UFFDIO_REGISTER", start, len))
    }

    /// Ends the registration of a range: its faults are the kernel's own again, marks of write-protection are gone, who waits there tries again.
    pub fn unregister(&self, start: Hva, len: u64) -> Result<(), UffdError> {
        let mut arg = RangeArg { start: start.0, len };
        // SAFETY: the argument has the layout that UFFDIO_UNREGISTER reads.
        unsafe { ioctl(self.raw(), UNREGISTER, &mut arg) }.map_err(failed("UFFDIO_UNREGISTER", start, len))
    }

    /// Write-protects a range: the next write to each page of it is an event. Present or not, a page keeps the mark.
    pub fn protect(&self, start: Hva, len: u64) -> Result<(), UffdError> {
        self.write_protect(start, len, WRITEPROTECT_WP)
    }

    /// Takes the write-protection away and wakes who waits there.
    pub fn unprotect(&self, start: Hva, len: u64) -> Result<(), UffdError> {
        self.write_protect(start, len, 0)
    }

    /// Takes the write-protection away and leaves waiters asleep.
    pub fn unprotect_quietly(&self, start: Hva, len: u64) -> Result<(), UffdError> {
        self.write_protect(start, len, WRITEPROTECT_DONTWAKE)
    }

    fn write_protect(&self, start: Hva, len: u64, mode: u64) -> Result<(), UffdError> {
        loop {
            let mut arg = WriteProtectArg { range: RangeArg { start: start.0, len }, mode };
            // SAFETY: the argument has the layout that UFFDIO_WRITEPROTECT reads.
            match unsafe { ioctl(self.raw(), WRITEPROTECT, &mut arg) } {
                Err(error) if is_again(&error) => std::thread::yield_now(),
                other => return other.map_err(failed("UFFDIO_WRITEPROTECT", start, len)),
            }
        }
    }

    /// Puts a page with these bytes where none is, writable, and wakes who waits there. As many bytes as the memory's pages have: the kernel
    /// takes one page or nothing, never a part.
    pub fn copy(&self, page: Hva, bytes: &[Page]) -> Result<Filled, UffdError> {
        let len = size_of_val(bytes) as u64;
        filled(self.copy_from(page, Hva(bytes.as_ptr() as u64), len), "UFFDIO_COPY", page, len)
    }

    /// Whether shared memory has a page there, mapped or not, without touching it. Asks the kernel to put a page there from `nowhere`, an address
    /// that can't be read: it looks for a page first, so it answers that there is one, or else that the source is bad, and changes nothing
    /// either way. For hugetlbfs, which tells no other way.
    pub fn holds(&self, page: Hva, len: u64, nowhere: &NoAccess) -> Result<bool, UffdError> {
        match self.copy_from(page, nowhere.start(), len) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(true),
            // No memory: there was no page, and none to be had either.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EFAULT | libc::ENOMEM)) => Ok(false),
            Err(error) => Err(failed("UFFDIO_COPY", page, len)(error)),
            Ok(()) => unreachable!("{len} bytes were copied from an address that can't be read"),
        }
    }

    fn copy_from(&self, page: Hva, from: Hva, len: u64) -> io::Result<()> {
        loop {
            let mut arg = CopyArg { dst: page.0, src: from.0, len, mode: 0, copied: 0 };
            // SAFETY: the argument has the layout that UFFDIO_COPY reads and writes. The source is only read, and by the kernel, which answers
            // EFAULT where it can't be.
            match unsafe { ioctl(self.raw(), COPY, &mut arg) } {
                Err(error) if is_again(&error) => std::thread::yield_now(),
                other => return other,
            }
        }
    }

    /// Puts a zero page of 4 KiB where none is and wakes who waits there. Not for hugetlbfs.
    pub fn zero(&self, page: Hva) -> Result<Filled, UffdError> {
        self.fill_without_source(page, PAGE_SIZE as u64, ZEROPAGE, "UFFDIO_ZEROPAGE")
    }

    /// Marks a missing page of `len` bytes as unreadable: every access from now on gets SIGBUS as for failed memory. Wakes who waits there.
    pub fn poison(&self, page: Hva, len: u64) -> Result<Filled, UffdError> {
        self.fill_without_source(page, len, POISON, "UFFDIO_POISON")
    }

    fn fill_without_source(&self, page: Hva, len: u64, call: u64, name: &'static str) -> Result<Filled, UffdError> {
        loop {
            let mut arg = ZeroArg { range: RangeArg { start: page.0, len }, mode: 0, done: 0 };
            // SAFETY: the argument has the layout that UFFDIO_ZEROPAGE and UFFDIO_POISON read and write.
            match unsafe { ioctl(self.raw(), call, &mut arg) } {
                Err(error) if is_again(&error) => std::thread::yield_now(),
                other => return filled(other, name, page, len),
            }
        }
    }

    /// Wakes who waits in the range; they try again.
    pub fn wake(&self, start: Hva, len: u64) -> Result<(), UffdError> {
        let mut arg = RangeArg { start: start.0, len };
        // SAFETY: the argument has the layout that UFFDIO_WAKE reads.
        unsafe { ioctl(self.raw(), WAKE, &mut arg) }.map_err(failed("UFFDIO_WAKE", start, len))
    }

    /// The next fault, `None` if none waits now. Other events are not enabled and never come.
    pub fn next_fault(&self) -> io::Result<Option<Fault>> {
        let mut message = Message { event: 0, reserved: [0; 7], flags: 0, address: 0, thread: 0, pad: 0 };
        // SAFETY: reads at most one message into a value of exactly its size; any bytes are valid for it.
        let got = unsafe { libc::read(self.raw(), (&raw mut message).cast(), size_of::<Message>()) };
        match usize::try_from(got) {
            Ok(n) if n == size_of::<Message>() && message.event == EVENT_PAGEFAULT => Ok(Some(Fault {
                page: Hva(message.address & !(PAGE_SIZE as u64 - 1)),
                write_protect: message.flags & FAULT_FLAG_WP != 0,
                write: message.flags & FAULT_FLAG_WRITE != 0,
                thread: message.thread,
            })),
            Ok(_) => Ok(None),
            Err(_) => match io::Error::last_os_error() {
                error if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(None),
                error => Err(error),
            },
        }
    }
}

/// `/dev/userfaultfd` where there is one and we may (no privilege needed beyond the file's mode), else the system call.
fn open_fd() -> Result<OwnedFd, UffdError> {
    if let Ok(device) = File::open("/dev/userfaultfd") {
        // SAFETY: USERFAULTFD_IOC_NEW takes flags by value and returns a new file descriptor.
        let fd = unsafe { libc::ioctl(device.as_raw_fd(), NEW, OPEN_FLAGS) };
        if fd >= 0 {
            // SAFETY: the kernel just made it for us.
            return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
    // SAFETY: userfaultfd(2) takes flags and returns a new file descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, OPEN_FLAGS) };
    match RawFd::try_from(fd) {
        // SAFETY: the kernel just made it for us.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::PermissionDenied => Err(UffdError::Permission(error)),
            error => Err(UffdError::Open(error)),
        },
    }
}

/// # Safety
/// `arg` must have the layout that `request` reads and writes.
unsafe fn ioctl<T>(fd: RawFd, request: u64, arg: &mut T) -> io::Result<()> {
    // SAFETY: the caller's promise; the reference outlives the call.
    match unsafe { libc::ioctl(fd, request, std::ptr::from_mut(arg)) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn is_again(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EAGAIN)
}

fn filled(result: io::Result<()>, call: &'static str, page: Hva, len: u64) -> Result<Filled, UffdError> {
    match result {
        Ok(()) => Ok(Filled::Done),
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(Filled::Exists),
        Err(error) => Err(failed(call, page, len)(error)),
    }
}

fn failed(call: &'static str, start: Hva, len: u64) -> impl FnOnce(io::Error) -> UffdError {
    move |source| UffdError::Call { call, start, len, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ioctl_numbers_are_the_kernels() {
        // From a C program that includes <linux/userfaultfd.h>.
        assert_eq!(API, 0xc018_aa3f);
        assert_eq!(REGISTER, 0xc020_aa00);
        assert_eq!(UNREGISTER, 0x8010_aa01);
        assert_eq!(WAKE, 0x8010_aa02);
        assert_eq!(COPY, 0xc028_aa03);
        assert_eq!(ZEROPAGE, 0xc020_aa04);
        assert_eq!(WRITEPROTECT, 0xc018_aa06);
        assert_eq!(POISON, 0xc020_aa08);
        assert_eq!(NEW, 0xaa00);
    }

    #[test]
    fn missing_features_are_named() {
        let error = UffdError::Features { missing: features::POISON | features::THREAD_ID };
        assert_eq!(error.to_string(), "this kernel's userfaultfd lacks THREAD_ID POISON; Linux 6.6 or later has them");
    }

    #[test]
    fn a_call_on_unregistered_memory_names_call_and_range() {
        let uffd = Uffd::open(FrameSize::Small).unwrap();
        let error = uffd.protect(Hva(0x1000), 4096).unwrap_err();
        assert_eq!(error.to_string(), "UFFDIO_WRITEPROTECT of 4096 bytes at 0x1000 failed");
    }
}
