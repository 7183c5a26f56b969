//! The few system calls that the standard library does not have, each behind a safe function.
//!
//! Promises: nothing outside this folder needs `unsafe`. Must never: keep state.

pub mod collapse;
pub mod probe;
pub mod signals;
