//! The TPM's structures, the commands that carry them, and the cryptography between software and a TPM.
//!
//! Everything is bytes in and bytes out: no device, no socket, no clock, and randomness is an argument. The agent's
//! program moves the bytes; signatures are parsed here and verified by who asks. Names are the TCG's where a type
//! matches its structure one to one. Modules in reading order: algorithms ([`alg`]), keys ([`public`], [`template`]),
//! quotes ([`attest`], [`signature`], [`pcr`]), credentials ([`kdf`], [`credential`]), and the language of the TPM
//! itself ([`command`], [`session`]).

pub mod alg;
pub mod attest;
pub mod command;
pub mod credential;
pub mod kdf;
pub mod pcr;
pub mod public;
pub mod rsa;
mod rsa_oaep;
mod seed;
pub mod session;
pub mod signature;
pub mod template;
mod wire;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod testutil;
