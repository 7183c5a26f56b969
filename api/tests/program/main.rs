//! The program from the outside: the REST server over real memory tiers, and the binary `ebb` itself.

mod bodies;
mod command_line;
mod ctl;
mod describing;
mod insight;
mod support;
mod tiers;
