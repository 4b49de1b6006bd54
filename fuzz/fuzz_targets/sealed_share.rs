//! Fuzz target: see [`trefoil_fuzz::sealed_share`].
#![cfg_attr(fuzzing, no_main)]

trefoil_fuzz::target!(sealed_share);
