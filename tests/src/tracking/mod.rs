//! How well trackers see, and what it costs: what `make tracking` measures and tests assert.
//!
//! Must never: hold figures that were not measured in the same run.

pub mod accuracy;
pub mod cost;
pub mod linux;
pub mod sets;
