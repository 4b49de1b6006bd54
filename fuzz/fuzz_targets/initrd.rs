//! Fuzz target: see [`trefoil_fuzz::initrd`].
#![cfg_attr(fuzzing, no_main)]

trefoil_fuzz::target!(initrd);
