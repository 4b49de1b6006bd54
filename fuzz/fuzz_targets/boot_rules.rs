//! Fuzz target: see [`trefoil_fuzz::boot_rules`].
#![cfg_attr(fuzzing, no_main)]

trefoil_fuzz::target!(boot_rules);
