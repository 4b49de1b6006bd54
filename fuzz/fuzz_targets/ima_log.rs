//! Fuzz target: see [`trefoil_fuzz::ima_log`].
#![cfg_attr(fuzzing, no_main)]

trefoil_fuzz::target!(ima_log);
