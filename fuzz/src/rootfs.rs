//! What policies are made from: other verifiers' policies, and archives of root file systems.

use control_plane::{
    appraisal::{
        Policy,
        policy::{keylime::Importer, write::Format},
    },
    rootfs::{
        Options, Unwatched,
        cpio::{self, CpioError},
        initrd,
    },
};
use protocol::tpm::alg::HashAlg;

use crate::{
    script::{Script, long, pieces},
    vectors,
};

/// What imports is a policy, in both forms, and the same whenever it is imported.
///
/// Input: files one after another, each behind its length.
pub fn keylime_import(data: &[u8]) {
    let import = |format| {
        let mut importer = Importer::new("fuzzed", Vec::new());
        let mut script = Script::new(data);
        for number in 0..4 {
            let file = script.long();
            importer.add(&format!("file {number}"), file).ok()?;
            if script.is_done() {
                break;
            }
        }
        importer.finish(Some(format)).ok()
    };
    let (Some(toml), Some(json)) = (import(Format::Toml), import(Format::Json)) else { return };
    assert_eq!(toml.text, json.text);
    assert_eq!(toml.notes, json.notes);
    for imported in [&toml, &json] {
        let policy = Policy::parse(imported.policy.as_bytes()).expect("what was imported parses");
        assert_eq!(policy.name(), "fuzzed");
        assert_eq!(policy.ima().is_some(), imported.text.ima.is_some());
        assert_eq!(policy.boot().is_some(), imported.text.boot.is_some());
    }
}

pub(crate) fn keylime_import_seeds() -> Vec<Vec<u8>> {
    let digest = "ab".repeat(32);
    let runtime = format!(
        r#"{{"meta":{{"version":1}},"digests":{{"/usr/bin/x":["{digest}","sha256:{digest}"]}},
        "excludes":["/tmp/.*","/var/(log|tmp)/[^/]*\\.log$","/run"],"keyrings":{{".ima":["{digest}"]}},
        "ima":{{"ignored_keyrings":["*"],"log_hash_alg":"sha256","dm_policy":null}},
        "ima-buf":{{"kexec-cmdline":["{digest}"]}},"verification-keys":{{"pubkeys":["AAAA"],"keyids":[1]}}}}"#
    );
    let state = format!(
        r#"{{"scrtm_and_bios":[{{"scrtm":{{"sha256":"0x{digest}"}},"platform_firmware":[{{"sha256":"0x{digest}"}}]}}],
        "pk":[{{"SignatureOwner":"x","SignatureData":"0x{digest}"}}],"kek":[],"db":[],"dbx":[],
        "mokdig":[{{"sha256":"0x{digest}"}}],"mokxdig":[],"kernels":[{{"shim_authcode_sha256":"0x{digest}",
        "grub_authcode_sha256":"0x{digest}","kernel_authcode_sha256":"0x{digest}",
        "initrd_plain_sha256":"0x{digest}","kernel_cmdline":"/vmlinuz root=.* ro"}}]}}"#
    );
    let pcrs = format!(r#"{{"7":["{digest}"],"0":["{}"],"mask":"0x81"}}"#, "cd".repeat(20));
    let flat = format!("{digest}  /usr/bin/x\n\\{digest} */odd\\nname\n{digest}  %keyring:.ima\n");
    let excludes = "# excluded\n/tmp/\n^/var/lib/.*$\n";
    let mut files: Vec<Vec<u8>> =
        [&runtime, &state, &pcrs, &flat].into_iter().map(|text| long(text.as_bytes())).collect();
    files.push(long(excludes.as_bytes()));
    files.push(files.concat());
    files.extend(vectors::files("policies", ".json").iter().map(|file| long(file)));
    files
}

/// An archive that is read is read the same again from the bytes that it took, and not from one less.
pub fn cpio(data: &[u8]) {
    let read = |mut bytes: &[u8]| {
        let all = bytes.len();
        let mut entries = Vec::new();
        cpio::read_archive(&mut bytes, |header, content| {
            // Every other entry's content is left to be skipped.
            let mut first = Vec::new();
            if entries.len().is_multiple_of(2) {
                std::io::Read::read_to_end(content, &mut first)?;
                assert_eq!(first.len(), header.size as usize);
            }
            entries.push((header.clone(), first));
            Ok::<_, CpioError>(())
        })
        .ok()?;
        Some((entries, all - bytes.len()))
    };
    let Some((entries, used)) = read(data) else { return };
    assert_eq!(read(&data[..used]), Some((entries, used)));
    assert_eq!(read(&data[..used - 1]), None);
}

/// newc entries, and the trailer.
fn archive(entries: &[(&str, u32, u32, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (ino, (name, mode, nlink, content)) in (1_u32..).zip(entries.iter().chain([&("TRAILER!!!", 0, 1, &b""[..])])) {
        let name_len = u32::try_from(name.len()).expect("short") + 1;
        let size = u32::try_from(content.len()).expect("short");
        let ino = if *nlink > 1 { 77 } else { ino };
        bytes.extend(b"070701");
        for value in [ino, *mode, 0, 0, *nlink, 0, size, 8, 1, 0, 0, name_len, 0] {
            bytes.extend(format!("{value:08X}").bytes());
        }
        bytes.extend(name.bytes());
        bytes.push(0);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes.extend(*content);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

pub(crate) fn cpio_seeds() -> Vec<Vec<u8>> {
    vec![
        archive(&[]),
        archive(&[("init", 0o100_755, 1, b"#!/bin/sh"), ("etc", 0o040_755, 1, b""), ("a", 0o100_644, 1, b"abc")]),
        archive(&[("bin", 0o120_777, 1, b"usr/bin"), ("bin/x", 0o100_755, 2, b""), ("y", 0o100_755, 2, b"shared")])
            .iter()
            .chain(b"more")
            .copied()
            .collect(),
    ]
}

/// What an initrd unpacks to does not depend on how its bytes arrive.
///
/// Input: how to cut it, the initrd.
pub fn initrd(data: &[u8]) {
    let Some((how, data)) = data.split_first() else { return };
    let options = Options {
        alg: HashAlg::Sha256,
        executable_only: !how.is_multiple_of(2),
        one_file_system: false,
        is_excluded: &|path| path.starts_with(b"/tmp/"),
        progress: &Unwatched,
    };
    let whole = initrd::read_from(data, &options).ok();
    let cut = initrd::read_from(Pieces(pieces(data, *how)), &options).ok();
    assert_eq!(whole, cut);
    for path in whole.iter().flat_map(|found| found.files.keys()) {
        assert!(path.starts_with('/') && !path.split('/').any(|name| name == ".."), "{path:?}");
    }
}

/// Hands out a piece at a time.
struct Pieces<'a>(Vec<&'a [u8]>);

impl std::io::Read for Pieces<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let Some(first) = self.0.first_mut() else { return Ok(0) };
        let read = std::io::Read::read(first, buf)?;
        if first.is_empty() {
            self.0.remove(0);
        }
        Ok(read)
    }
}

pub(crate) fn initrd_seeds() -> Vec<Vec<u8>> {
    let archives = cpio_seeds();
    let mut seeds: Vec<Vec<u8>> = archives.iter().map(|archive| [&[0], &archive[..]].concat()).collect();
    let zeros = [0; 64];
    seeds.push([&[3], &archives[1][..], &zeros, &archives[0]].concat());
    // The same archive compressed: legacy LZ4 (one sequence of literals), gzip and zstd of stored blocks.
    let archive = &archives[1];
    let len = u32::try_from(archive.len()).expect("short");
    let mut block = vec![0xf0];
    let mut left = len - 15;
    while left >= 255 {
        block.push(255);
        left -= 255;
    }
    block.push(left as u8);
    block.extend(archive);
    let block_len = u32::try_from(block.len()).expect("short");
    seeds.push([&[1, 0x02, 0x21, 0x4c, 0x18][..], &block_len.to_le_bytes(), &block].concat());
    // Frame header: single segment, four bytes of content size; a last raw block.
    let raw_block = (len << 3 | 1).to_le_bytes();
    let zstd = [&[0x28, 0xb5, 0x2f, 0xfd, 0xa0][..], &len.to_le_bytes(), &raw_block[..3], archive].concat();
    seeds.push([&[2], &zstd[..], &zeros, archive].concat());
    seeds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seeds_unpack() {
        let options = Options {
            alg: HashAlg::Sha256,
            executable_only: false,
            one_file_system: false,
            is_excluded: &|_| false,
            progress: &Unwatched,
        };
        let files: Vec<Option<usize>> = initrd_seeds()
            .iter()
            .map(|seed| initrd::read_from(&seed[1..], &options).ok().map(|found| found.files.len()))
            .collect();
        assert_eq!(files, [Some(0), Some(2), None, Some(2), Some(2), Some(2)]);
        for seed in &keylime_import_seeds()[..6] {
            let mut importer = Importer::new("seed", Vec::new());
            assert!(importer.add("seed", Script::new(seed).long()).is_ok());
        }
    }
}
