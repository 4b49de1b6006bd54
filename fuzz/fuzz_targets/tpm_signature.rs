//! Fuzz target: see [`trefoil_fuzz::tpm_signature`].
#![cfg_attr(fuzzing, no_main)]

trefoil_fuzz::target!(tpm_signature);
