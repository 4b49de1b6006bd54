//! Fuzz target: see [`trefoil_fuzz::coap_frame`].
#![cfg_attr(fuzzing, no_main)]

trefoil_fuzz::target!(coap_frame);
