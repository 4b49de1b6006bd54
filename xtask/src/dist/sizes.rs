//! What the agent's size is made of: its functions and constants added up by the crate they are from.
//!
//! The optimiser sees the whole program at once: small functions lie inside their callers, and count there. So the parts
//! say what is large, not to the byte what leaving one out would save.

use std::collections::{BTreeMap, BTreeSet};
use std::env::consts::ARCH;
use std::fs;

use anyhow::{Context, Result};

use super::build::{ARCHES, Target, Tree};
use super::elf::Elf;
use crate::tools;

/// A part of the agent: what it is called, the crates it is of, and what the agent has it for.
struct Part {
    name: &'static str,
    crates: &'static [&'static str],
    purpose: &'static str,
}

/// In the order in which a crate is looked for; a name that ends with `::` is a module of one of ours.
const PARTS: &[Part] = &[
    Part {
        name: "TLS 1.3",
        crates: &[
            "embedded_tls",
            "embedded_io",
            "embedded_io_adapters",
            "trefoil_agent::tls",
            "trefoil_agent::x509",
            "der",
            "const_oid",
        ],
        purpose: "the connection, its guard, reading certificates",
    },
    Part {
        name: "P-256 and P-384",
        crates: &[
            "p256",
            "p384",
            "ecdsa",
            "elliptic_curve",
            "primeorder",
            "crypto_bigint",
            "sec1",
            "signature",
            "ff",
            "group",
            "rfc6979",
            "base16ct",
        ],
        purpose: "TLS key exchange and certificates, NK, the payload's signature",
    },
    Part {
        name: "AES, GCM and CFB",
        crates: &[
            "aes",
            "aes_gcm",
            "ghash",
            "polyval",
            "ctr",
            "cipher",
            "inout",
            "aead",
            "universal_hash",
            "cfb_mode",
            "opaque_debug",
        ],
        purpose: "TLS records, the payload, the TPM's parameter encryption",
    },
    Part {
        name: "hashes",
        crates: &["sha1", "sha2", "hmac", "hkdf", "digest", "block_buffer", "crypto_common", "cpufeatures"],
        purpose: "everything that is bound, derived or measured",
    },
    Part {
        name: "key derivation",
        crates: &["hpke", "protocol::crypto"],
        purpose: "HPKE for the two shares, K_b and what is derived of it, manifest, payload",
    },
    Part {
        name: "messages",
        crates: &["postcard", "serde", "serde_core", "cobs", "protocol::message"],
        purpose: "bodies of requests and answers, by postcard",
    },
    Part {
        name: "containers and helpers",
        crates: &[
            "heapless",
            "hash32",
            "generic_array",
            "typenum",
            "subtle",
            "zeroize",
            "rand_core",
            "getrandom",
            "byteorder",
            "thiserror",
        ],
        purpose: "bounded lists, comparing in constant time, wiping, random bytes",
    },
    Part {
        name: "protocol: TPM",
        crates: &["protocol::tpm"],
        purpose: "commands and answers of the TPM, keys, sessions",
    },
    Part {
        name: "protocol: CoAP",
        crates: &["protocol::coap", "coap_lite"],
        purpose: "frames, exchanges, blocks, routes",
    },
    Part {
        name: "protocol: the rest",
        crates: &["protocol"],
        purpose: "decoding, identifiers, the payload's container",
    },
    Part { name: "the agent's core", crates: &["agent_minimal"], purpose: "one connection as a state machine" },
    Part {
        name: "the agent's TPM driver",
        crates: &["trefoil_agent::tpm"],
        purpose: "EK, AK, sessions and quotes, on a device or a socket",
    },
    Part {
        name: "the agent's program",
        crates: &["trefoil_agent"],
        purpose: "settings, logs, payload, hardening, supervision",
    },
    Part {
        name: "Rust's standard library",
        crates: &[
            "std",
            "core",
            "alloc",
            "__rustc",
            "compiler_builtins",
            "hashbrown",
            "memchr",
            "rustc_demangle",
            "addr2line",
            "gimli",
            "miniz_oxide",
            "object",
            "adler2",
            "unwind",
            "panic_abort",
            "panic_unwind",
            "std_detect",
            "cfg_if",
            "libc",
        ],
        purpose: "files, sockets, processes, formatting, printing a panic's place; our instances of its generics too",
    },
    Part {
        name: "musl and start-up code",
        crates: &[FOREIGN],
        purpose: "the C library below it, name resolution, the allocator",
    },
];

/// What has no Rust name.
const FOREIGN: &str = "(C)";

/// Builds the agent for this machine with its symbols and prints two tables, in Markdown.
///
/// # Errors
/// When it does not compile.
pub(crate) fn run() -> Result<()> {
    let arch = ARCHES.into_iter().find(|&arch| arch == ARCH).context("the agent is not built for this machine")?;
    let target = Target::find(arch).context("the Rust toolchain has no target that makes static programs")?;
    // A directory of its own: the ordinary build would otherwise be made anew after each of these, and the reverse.
    let tree = Tree { symbols: true, target_dir: tools::target_dir().join("sizes"), ..Tree::here() };
    let elf = Elf::parse(&fs::read(tree.agent(&target)?)?)?;
    let table = Table::of(&elf);
    println!("{}: {} bytes in the file, without its headers\n", target.triple, table.total);
    print!("{}", table.parts());
    println!("\nThe largest crates (for ours: modules) by themselves; `(C)` is what has no Rust name:\n");
    print!("{}", table.crates(20));
    Ok(())
}

/// Bytes by what they are for.
#[derive(Debug, Default)]
struct Table {
    /// By crate, of ours by module.
    crates: BTreeMap<String, u64>,
    /// What no symbol names, by section.
    rest: Vec<(String, u64)>,
    total: u64,
}

impl Table {
    fn of(elf: &Elf) -> Self {
        let mut table = Self::default();
        let mut named = vec![0u64; elf.sections.len()];
        let mut seen = BTreeSet::new();
        let counts =
            |index: usize| elf.sections.get(index).is_some_and(|section| section.is_loaded() && section.is_in_file());
        // Equal functions are kept once and have several names.
        for symbol in elf.symbols.iter().filter(|symbol| counts(symbol.section)) {
            if seen.insert((symbol.section, symbol.address)) {
                *table.crates.entry(origin(&symbol.name)).or_default() += symbol.len;
                if let Some(named) = named.get_mut(symbol.section) {
                    *named += symbol.len;
                }
            }
        }
        for (index, section) in elf.sections.iter().enumerate().filter(|&(index, _)| counts(index)) {
            table.total += section.len;
            let rest = section.len.saturating_sub(named.get(index).copied().unwrap_or(0));
            if rest > 0 {
                table.rest.push((section.name.clone(), rest));
            }
        }
        table
    }

    fn parts(&self) -> String {
        let mut rows: Vec<(u64, String, String)> = Vec::new();
        let mut other: u64 = self.crates.values().sum();
        let mut left: BTreeSet<&String> = self.crates.keys().collect();
        for part in PARTS {
            let of_part: Vec<&String> = left.iter().copied().filter(|name| part.has(name)).collect();
            let len = of_part.iter().filter_map(|name| self.crates.get(*name)).sum::<u64>();
            left.retain(|name| !part.has(name));
            other -= len;
            rows.push((len, part.name.into(), part.purpose.into()));
        }
        if other > 0 {
            let names = left.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
            rows.push((other, "other crates".into(), names));
        }
        for (kind, sections) in SECTIONS {
            let len = self.rest.iter().filter(|(name, _)| sections.contains(&name.as_str())).map(|(_, len)| len).sum();
            rows.push((len, kind.into(), sections.join(", ")));
        }
        let known = |name: &str| SECTIONS.iter().any(|(_, sections)| sections.contains(&name));
        let unknown = self.rest.iter().filter(|(name, _)| !known(name));
        let (names, lens): (Vec<&str>, Vec<u64>) = unknown.map(|(name, len)| (name.as_str(), *len)).unzip();
        rows.push((lens.iter().sum(), "what the loader needs".into(), names.join(", ")));
        rows.retain(|(len, _, _)| *len > 0);
        rows.sort_by_key(|row| std::cmp::Reverse(row.0));
        let mut text = String::from("| part | bytes | share | what it is for |\n|---|---:|---:|---|\n");
        for (len, name, purpose) in rows {
            text.push_str(&format!("| {name} | {len} | {} | {purpose} |\n", self.share(len)));
        }
        text.push_str(&format!("| **together** | {} | | |\n", self.total));
        text
    }

    fn crates(&self, most: usize) -> String {
        let mut rows: Vec<(&String, &u64)> = self.crates.iter().collect();
        rows.sort_by(|one, other| other.1.cmp(one.1));
        let mut text = String::from("| crate | bytes | share |\n|---|---:|---:|\n");
        for (name, &len) in rows.into_iter().take(most) {
            text.push_str(&format!("| `{name}` | {len} | {} |\n", self.share(len)));
        }
        text
    }

    fn share(&self, len: u64) -> String {
        format!("{:.1} %", len as f64 * 100.0 / self.total.max(1) as f64)
    }
}

impl Part {
    fn has(&self, name: &str) -> bool {
        self.crates.iter().any(|&of| name == of || name.strip_prefix(of).is_some_and(|rest| rest.starts_with("::")))
    }
}

/// What no symbol names, by kind of section.
const SECTIONS: [(&str, &[&str]); 3] = [
    ("constants and strings", &[".rodata", ".data.rel.ro", ".data"]),
    ("unwind tables", &[".eh_frame", ".eh_frame_hdr", ".gcc_except_table"]),
    ("code without a name, padding", &[".text"]),
];

/// The crates that are ours, counted by module.
const OURS: [&str; 3] = ["protocol", "agent_minimal", "trefoil_agent"];

/// The crate that a symbol is from: the first that its name says, which for a trait's method is the type's.
fn origin(symbol: &str) -> String {
    let Ok(name) = rustc_demangle::try_demangle(symbol) else { return FOREIGN.into() };
    let name = format!("{name:#}");
    let mut steps = name.split("::");
    let last_word = |step: &str| {
        let start = step.rfind(|c: char| !c.is_ascii_alphanumeric() && c != '_').map_or(0, |at| at + 1);
        step.get(start..).unwrap_or_default().to_owned()
    };
    let first = last_word(steps.next().unwrap_or_default());
    if OURS.contains(&first.as_str())
        && let Some(module) = steps.next()
    {
        let end = module.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(module.len());
        // A module, not a type: `machine`, not `Machine`.
        let module = module.get(..end).unwrap_or_default();
        if module.starts_with(|c: char| c.is_ascii_lowercase()) {
            return format!("{first}::{module}");
        }
    }
    if first.is_empty() { FOREIGN.into() } else { first }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symbols_are_told_by_crate_and_ours_by_module() {
        for (symbol, from) in [
            ("_ZN4p25610arithmetic5field3add17h0123456789abcdefE", "p256"),
            ("_ZN8protocol3tpm7command5Start17h0123456789abcdefE", "protocol::tpm"),
            // As a trait's method, the type before the trait.
            ("_ZN58_$LT$hpke..aead..Seal$u20$as$u20$core..ops..drop..Drop$GT$4drop17h0123456789abcdefE", "hpke"),
            ("_RNvNtCs1234_7mycrate3foo3bar", "mycrate"),
            ("_RNvNtCs1234_13trefoil_agent3tls3bar", "trefoil_agent::tls"),
            ("memcpy", FOREIGN),
        ] {
            assert_eq!(origin(symbol), from, "{symbol}");
        }
    }

    #[test]
    fn every_byte_is_in_one_row() {
        let file = fs::read(std::env::current_exe().unwrap()).unwrap();
        let table = Table::of(&Elf::parse(&file).unwrap());
        let named: u64 = table.crates.values().sum();
        let rest: u64 = table.rest.iter().map(|(_, len)| len).sum();
        assert!(named > 0 && named + rest >= table.total);
        let parts = table.parts();
        let rows = parts.lines().skip(2).filter(|line| !line.contains("**"));
        let lens = rows.map(|line| line.split('|').nth(2).unwrap().trim().parse::<u64>().unwrap());
        assert_eq!(lens.sum::<u64>(), named + rest);
        assert_eq!(table.crates(5).lines().count(), 7);
    }

    #[test]
    fn a_module_has_a_part_of_its_own_before_its_crate() {
        let part = |name: &str| PARTS.iter().find(|part| part.has(name)).unwrap().name;
        assert_eq!(part("protocol::tpm"), "protocol: TPM");
        assert_eq!(part("protocol::message"), "messages");
        assert_eq!(part("protocol::id"), "protocol: the rest");
        assert_eq!(part("trefoil_agent::tls"), "TLS 1.3");
        assert!(!PARTS.iter().any(|part| part.has("protocols")));
    }
}
