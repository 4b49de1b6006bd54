//! Fuzz target: see [`trefoil_fuzz::pcr_file`].
#![cfg_attr(fuzzing, no_main)]

trefoil_fuzz::target!(pcr_file);
