//! What Ebb's end-to-end tests share.

pub mod host;
#[path = "../../memtier/tests/common/huge.rs"]
pub mod huge_pool;
pub mod payload;
pub mod report;
pub mod tracking;
