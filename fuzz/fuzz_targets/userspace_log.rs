//! Fuzz target: see [`trefoil_fuzz::userspace_log`].
#![cfg_attr(fuzzing, no_main)]

trefoil_fuzz::target!(userspace_log);
