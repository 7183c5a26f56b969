//! What Ebb's end-to-end tests share.

pub mod host;
pub mod payload;
pub mod report;
