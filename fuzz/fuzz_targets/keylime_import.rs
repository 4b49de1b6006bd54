//! Fuzz target: see [`trefoil_fuzz::keylime_import`].
#![cfg_attr(fuzzing, no_main)]

trefoil_fuzz::target!(keylime_import);
