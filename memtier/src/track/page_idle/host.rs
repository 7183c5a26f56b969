//! What the tracker uses of the host, opened and tried out.
//!
//! Promises: what opens works: a page of our own could be marked, read as idle, and was seen when touched. Must never: need more rights later
//! than at the start; the files stay open, so that a process may give its rights up.

use std::io;

use crate::sys::kpageflags::{self, KPageFlags, Mapped, PageFrames, Pfn};
use crate::sys::page_idle::scratch::Scratch;
use crate::sys::page_idle::{self, CHUNK_FRAMES, IdleBitmap};

/// Why this host can't be tracked by its idle page bitmap.
#[derive(Debug, thiserror::Error)]
pub enum PageIdleError {
    /// The kernel was built without it.
    #[error("{path} is missing: the host's kernel needs {option}")]
    Missing {
        /// The file.
        path: &'static str,
        /// The kernel's option that brings it.
        option: &'static str,
    },
    /// This process may not open it.
    #[error("{path} can't be opened: it is root's alone (CAP_DAC_OVERRIDE)")]
    Denied {
        /// The file.
        path: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Frame numbers read as zero.
    #[error("{path} hides host frame numbers: CAP_SYS_ADMIN is needed", path = kpageflags::PAGEMAP)]
    Hidden,
    /// All is there, but marks do not do what they should.
    #[error("the idle page bitmap does not work here: a page of our own {0}")]
    Blind(&'static str),
    /// A call failed.
    #[error("{what} failed")]
    Call {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// How often the trial is repeated: the kernel may have isolated the page just then, or reclaim may have looked at it.
const TRIALS: u32 = 20;

/// See the module.
#[derive(Debug)]
pub struct Host {
    pub bitmap: IdleBitmap,
    pub frames: PageFrames,
    pub flags: KPageFlags,
    scratch: Scratch,
}

impl Host {
    pub fn open() -> Result<Self, PageIdleError> {
        let bitmap =
            IdleBitmap::open().map_err(|error| refused(page_idle::PATH, "CONFIG_IDLE_PAGE_TRACKING", error))?;
        let option = "CONFIG_PROC_PAGE_MONITOR";
        let frames = PageFrames::open().map_err(|error| refused(kpageflags::PAGEMAP, option, error))?;
        let flags = KPageFlags::open().map_err(|error| refused(kpageflags::KPAGEFLAGS, option, error))?;
        let scratch = Scratch::new().map_err(|source| PageIdleError::Call { what: "mapping a few pages", source })?;
        let host = Self { bitmap, frames, flags, scratch };
        host.try_out()?;
        Ok(host)
    }

    /// Puts fresh pages on their lists, if the kernel can; those that it can't count as accessed.
    pub fn drain(&self) -> io::Result<()> {
        match self.scratch.drain_lru() {
            Err(error) if error.raw_os_error() != Some(libc::EINVAL) => Err(error),
            _ => Ok(()),
        }
    }

    /// Makes this process's processors look at the page tables again.
    pub fn flush(&self) -> io::Result<()> {
        self.scratch.flush_tlb()
    }

    fn try_out(&self) -> Result<(), PageIdleError> {
        let mut blind = PageIdleError::Blind("was never tried");
        for _ in 0..TRIALS {
            match self.trial() {
                Err(PageIdleError::Blind(how)) => blind = PageIdleError::Blind(how),
                done => return done,
            }
        }
        Err(blind)
    }

    fn trial(&self) -> Result<(), PageIdleError> {
        let call = |what| move |source| PageIdleError::Call { what, source };
        self.scratch.touch();
        let pfn = match self.frames.at(self.scratch.page()).map_err(call("reading /proc/self/pagemap"))? {
            Mapped::At(pfn) => pfn,
            Mapped::Hidden => return Err(PageIdleError::Hidden),
            Mapped::No => return Err(PageIdleError::Blind("is not mapped though it was touched")),
        };
        self.drain().map_err(call("MADV_COLLAPSE"))?;
        self.mark(pfn).map_err(call("marking a page idle"))?;
        if !self.is_idle(pfn).map_err(call("reading the idle page bitmap"))? {
            return Err(PageIdleError::Blind("can't be marked idle"));
        }
        self.flush().map_err(call("unmapping a few pages"))?;
        self.scratch.touch();
        let idle = self.is_idle(pfn).map_err(call("reading the idle page bitmap"))?;
        if idle { Err(PageIdleError::Blind("stays idle though it is touched")) } else { Ok(()) }
    }

    fn mark(&self, pfn: Pfn) -> io::Result<()> {
        self.bitmap.mark(pfn.0 / CHUNK_FRAMES, &[(1_u64 << (pfn.0 % CHUNK_FRAMES)).to_ne_bytes()])
    }

    fn is_idle(&self, pfn: Pfn) -> io::Result<bool> {
        let mut chunk = [[0; 8]];
        match self.bitmap.read(pfn.0 / CHUNK_FRAMES, &mut chunk)? {
            0 => Ok(self.flags.reader().flags(pfn)?.is_idle()),
            _ => Ok(u64::from_ne_bytes(chunk[0]) >> (pfn.0 % CHUNK_FRAMES) & 1 == 1),
        }
    }
}

fn refused(path: &'static str, option: &'static str, source: io::Error) -> PageIdleError {
    match source.kind() {
        io::ErrorKind::NotFound => PageIdleError::Missing { path, option },
        io::ErrorKind::PermissionDenied => PageIdleError::Denied { path, source },
        _ => PageIdleError::Call { what: path, source },
    }
}

/// What an error means for whoever asked for the tracker.
impl From<PageIdleError> for io::Error {
    fn from(error: PageIdleError) -> Self {
        let kind = match &error {
            PageIdleError::Missing { .. } | PageIdleError::Blind(_) => io::ErrorKind::Unsupported,
            PageIdleError::Denied { .. } | PageIdleError::Hidden => io::ErrorKind::PermissionDenied,
            PageIdleError::Call { source, .. } => source.kind(),
        };
        Self::new(kind, error)
    }
}
