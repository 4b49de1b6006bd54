//! Fuzz target: see [`trefoil_fuzz::container`].
#![cfg_attr(fuzzing, no_main)]

trefoil_fuzz::target!(container);
