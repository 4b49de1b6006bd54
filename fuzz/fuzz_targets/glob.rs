//! Fuzz target: see [`trefoil_fuzz::glob`].
#![cfg_attr(fuzzing, no_main)]

trefoil_fuzz::target!(glob);
