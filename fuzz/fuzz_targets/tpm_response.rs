//! Fuzz target: see [`trefoil_fuzz::tpm_response`].
#![cfg_attr(fuzzing, no_main)]

trefoil_fuzz::target!(tpm_response);
