//! The agent's core: one connection's protocol as a machine without IO, clock, random source or TPM.
//!
//! [`machine::Machine`] is the one public door; the program under `bin/agent` moves its bytes, keeps its time, and does
//! the work it asks for.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::std_instead_of_core))]

extern crate alloc;

pub mod machine;
