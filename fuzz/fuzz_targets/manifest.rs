//! Fuzz target: see [`trefoil_fuzz::manifest`].
#![cfg_attr(fuzzing, no_main)]

trefoil_fuzz::target!(manifest);
