//! Fuzz target: see [`trefoil_fuzz::boot_log`].
#![cfg_attr(fuzzing, no_main)]

trefoil_fuzz::target!(boot_log);
