//! Fuzz target: see [`trefoil_fuzz::appraise`].
#![cfg_attr(fuzzing, no_main)]

trefoil_fuzz::target!(appraise);
