//! Fuzz target: see [`trefoil_fuzz::payload_opener`].
#![cfg_attr(fuzzing, no_main)]

trefoil_fuzz::target!(payload_opener);
