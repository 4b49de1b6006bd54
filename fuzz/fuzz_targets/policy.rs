//! Fuzz target: see [`trefoil_fuzz::policy`].
#![cfg_attr(fuzzing, no_main)]

trefoil_fuzz::target!(policy);
