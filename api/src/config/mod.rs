//! What a guest is made of, from flags, a JSON file or a client's requests, merged into one draft and checked.
//!
//! Promises: whatever the way in, the same words mean the same machine. Must never: touch the files it names; the machine does that.

pub mod bodies;
pub mod draft;
pub mod file;
pub mod json;
pub mod size;
pub mod spec;

pub use draft::{Draft, DraftError};
