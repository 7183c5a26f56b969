//! Whole machines on this host's KVM, with payload guests.

mod common;
mod dirty;
mod payload;
mod tiering;
