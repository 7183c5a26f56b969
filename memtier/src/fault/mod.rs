//! Brings pages back: [`fill`] does it for one frame, [`handler`] answers the guest's faults with it, [`latency`] remembers how long that
//! took.
//!
//! Promises (`docs/architecture.md`, rules 2, 6 and 7): a fault is answered with the bytes that left or with poison; answering allocates
//! nothing, takes no lock that eviction holds over I/O, and touches the guest mapping only by userfaultfd. Must never: let a fault wait for
//! a wake-up that nobody owes it.

pub mod fill;
pub mod handler;
pub mod latency;
