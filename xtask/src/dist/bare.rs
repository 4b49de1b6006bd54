//! `protocol` and the agent's core without an operating system: an image for a Cortex-M4F, linked and weighed.

use std::fs;

use anyhow::{Result, bail};

use super::elf::Elf;
use crate::tools::{self, Counts};

const TARGET: &str = "thumbv7em-none-eabi";
/// Its own workspace; see there.
const MANIFEST: &str = "agent-minimal/bare/Cargo.toml";
const IMAGE: &str = "trefoil-bare";
/// Part of the heap's symbol.
const HEAP: &str = "HEAP_MEM";

/// Lints and links the image, and prints its size.
///
/// # Errors
/// When it does not compile or link: something needs an operating system.
pub(crate) fn check() -> Result<Counts> {
    if !tools::ensure_rust_target(TARGET) {
        println!("skipped: no_std build: the Rust target {TARGET} cannot be added (no rustup, or no network)");
        return Ok(Counts::SKIPPED);
    }
    let image = ["--manifest-path", MANIFEST, "--release", "--locked", "--target", TARGET];
    tools::run(&mut tools::cargo(&["fmt", "--manifest-path", MANIFEST, "--check"]))?;
    tools::run(tools::cargo(&["clippy"]).args(image).args(["--", "-D", "warnings"]))?;
    // Both libraries as they are, then linked into something that uses all of them.
    let libraries = ["--package", "protocol", "--package", "agent-minimal", "--lib", "--target", TARGET];
    tools::run(tools::cargo(&["build"]).args(libraries))?;
    tools::run(tools::cargo(&["build"]).args(image))?;
    let size = Size::of(&Elf::parse(&fs::read(tools::target_dir().join(TARGET).join("release").join(IMAGE))?)?)?;
    let Size { text, data, bss, heap } = size;
    println!(
        "{TARGET}: protocol and the agent's core, linked: text {text}, data {data}, bss {bss} bytes, \
         and a heap of {heap} (no TLS, no TPM commands)"
    );
    Ok(Counts::PASSED)
}

/// Bytes of an image.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Size {
    /// Code and constants: in flash.
    text: u64,
    /// In flash, and copied to memory.
    data: u64,
    /// Zeros in memory, without the heap.
    bss: u64,
    heap: u64,
}

impl Size {
    fn of(elf: &Elf) -> Result<Self> {
        let heap: u64 = elf.symbols.iter().filter(|symbol| symbol.name.contains(HEAP)).map(|symbol| symbol.len).sum();
        let mut size = Self { heap, ..Self::default() };
        for section in elf.sections.iter().filter(|section| section.is_loaded()) {
            match (section.is_in_file(), section.is_writable()) {
                (true, false) => size.text += section.len,
                (true, true) => size.data += section.len,
                (false, _) => size.bss += section.len,
            }
        }
        if size.text == 0 || heap == 0 || size.bss < heap {
            bail!("the image holds no code, or no heap: {size:?}");
        }
        size.bss -= heap;
        Ok(size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_without_a_heap_is_not_weighed() {
        let program = Elf::parse(&fs::read(std::env::current_exe().unwrap()).unwrap()).unwrap();
        assert!(Size::of(&program).is_err(), "a test has no HEAP_MEM");
    }
}
