//! Fuzz target: see [`trefoil_fuzz::agent_machine`].
#![cfg_attr(fuzzing, no_main)]

trefoil_fuzz::target!(agent_machine);
