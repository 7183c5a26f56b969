//! Atomics that are the standard library's in the product and loom's under `--cfg loom`, so that the model checker runs the real code.

#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicU64, Ordering};

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU64, Ordering};
