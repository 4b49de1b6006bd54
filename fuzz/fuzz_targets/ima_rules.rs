//! Fuzz target: see [`trefoil_fuzz::ima_rules`].
#![cfg_attr(fuzzing, no_main)]

trefoil_fuzz::target!(ima_rules);
