//! Fuzz target: see [`trefoil_fuzz::message_decode`].
#![cfg_attr(fuzzing, no_main)]

trefoil_fuzz::target!(message_decode);
