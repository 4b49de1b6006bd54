//! Scenarios on whole machines under QEMU, with firmware and a kernel that measure: `cargo xtask vm` runs them.

#[path = "vm/boots.rs"]
mod boots;
#[path = "vm/debian.rs"]
mod debian;
#[path = "vm/disk.rs"]
mod disk;
#[path = "vm/distro.rs"]
mod distro;
#[path = "vm/real_tpm.rs"]
mod real_tpm;
#[path = "vm/resume.rs"]
mod resume;
#[path = "vm/running.rs"]
mod running;
#[path = "vm/site.rs"]
mod site;
