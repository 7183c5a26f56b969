//! vCPUs: what their processor can do, how they start, their threads, and how these are paused and stopped.
//!
//! Climb it in this order: [`cpuid`], [`msrs`], [`registers`] (the state at the start), [`setup`] (putting it into KVM), [`gate`] (pausing and
//! stopping), [`signals`] (getting a thread out of the guest), [`exit`] (what KVM says when it leaves), [`run`] (the loop around it).

pub mod cpuid;
pub mod exit;
pub mod gate;
pub mod msrs;
pub mod registers;
pub mod run;
pub mod setup;
pub mod signals;
