//! One atomic word per guest frame: its state, and every step it may take.
//!
//! [`word`] is the word and its transitions, pure functions that can be tested without threads; [`table`] applies them atomically. Must
//! never: touch memory, tiers or the kernel.

pub mod table;
pub mod word;

#[cfg(all(test, loom))]
mod model;

pub use table::FrameTable;
pub use word::{FrameWord, State, Ticket};
