//! What Trefoil's agent and control plane say to each other, and the cryptography they say it with.
//!
//! No clock, no random source, no socket and no TPM handle lives here: they are arguments. Modules in reading order:
//! [`limits`], [`id`], [`codec`], the transport [`coap`], the bodies [`message`], the TPM's structures [`tpm`] and the
//! key derivation [`crypto`].
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::std_instead_of_core))]

extern crate alloc;

pub mod bytes;
pub mod coap;
pub mod codec;
pub mod crypto;
pub mod id;
pub mod limits;
pub mod message;
pub mod tpm;
