//! Fuzz target: see [`trefoil_fuzz::ek_certificate`].
#![cfg_attr(fuzzing, no_main)]

trefoil_fuzz::target!(ek_certificate);
