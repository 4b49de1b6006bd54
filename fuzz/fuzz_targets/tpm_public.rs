//! Fuzz target: see [`trefoil_fuzz::tpm_public`].
#![cfg_attr(fuzzing, no_main)]

trefoil_fuzz::target!(tpm_public);
