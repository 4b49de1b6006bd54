//! Fuzz target: see [`trefoil_fuzz::cpio`].
#![cfg_attr(fuzzing, no_main)]

trefoil_fuzz::target!(cpio);
