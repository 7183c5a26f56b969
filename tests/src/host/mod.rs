//! Runs Linux guests under `ebb` on a host where they can run: an emulated machine, or this one when its KVM is complete.
//!
//! A [`job::Job`] is a shell script with files. It starts `ebb`, drives it through its command line and REST interface, and reports by lines that
//! [`outcome::Outcome`] collects. Bottom up: `initramfs` (the archive), `artifacts` (kernels and programs), `outcome` (what came back),
//! `emulated` (the machine), `job` (all together), `guest` (what is done with Linux guests).

pub mod artifacts;
mod emulated;
pub mod guest;
pub mod initramfs;
pub mod job;
pub mod outcome;
