//! The kernel's interfaces that no crate offers as we need them, and nothing else.
//!
//! Promises: every function is safe to call or says what its caller owes; error numbers come out as `io::Error`. Must never: know about
//! frames, tiers or policy.

pub mod kpageflags;
pub mod mem;
pub mod page_idle;
pub mod pagemap;
pub mod thp;
pub mod uffd;
