//! Fuzz target: see [`trefoil_fuzz::coap_exchange`].
#![cfg_attr(fuzzing, no_main)]

trefoil_fuzz::target!(coap_exchange);
