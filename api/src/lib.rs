//! The program `ebb` as a library, so that its parts can be tested: command line, configuration, REST server and client, host check.
//!
//! Promises: what a user or a client says is checked before anything is done, and every refusal is one sentence. Must never: panic on input,
//! or know what is inside a machine or its tiers beyond their public handles.

pub mod check;
pub mod cli;
pub mod client;
pub mod config;
pub mod guest;
pub mod instance;
pub mod rest;
mod sys;
