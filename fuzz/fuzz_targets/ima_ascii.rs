//! Fuzz target: see [`trefoil_fuzz::ima_ascii`].
#![cfg_attr(fuzzing, no_main)]

trefoil_fuzz::target!(ima_ascii);
