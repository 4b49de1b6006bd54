//! Trefoil's control plane: the gateway that agents dial, the roles behind it, and the API and CLI for operators.
//!
//! Three files to open first: [`server`] starts everything, [`gateway`] drives one agent's connection, [`round`] asks an
//! agent for evidence and judges it. The roles [`registrar`], [`verifier`] and [`tenant`] share nothing but the
//! [`link`] traits; each has a store of its own.
#![forbid(unsafe_code)]

pub mod app;
pub mod appraisal;
mod appraiser;
pub mod config;
pub mod ek;
pub mod error;
pub mod evidence;
pub mod files;
pub mod gateway;
pub mod http;
pub mod init;
pub mod link;
pub mod operator;
pub mod pki;
pub mod refusal;
pub mod registrar;
pub mod rootfs;
pub mod round;
pub mod server;
pub mod store;
pub mod tenant;
pub mod token;
pub mod verifier;
