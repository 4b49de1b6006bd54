use std::io::Write as _;

use protocol::tpm::alg::HashAlg;

use super::super::Unwatched;
use super::super::cpio::tests::{entry, trailer};
use super::*;

const FILE: u32 = 0o100_644;
const PROGRAM: u32 = 0o100_755;
const LINK: u32 = 0o120_777;
const DIR: u32 = 0o040_755;

fn found(bytes: &[u8]) -> Result<Found, RootfsError> {
    read_from(
        bytes,
        &Options {
            alg: HashAlg::Sha256,
            executable_only: false,
            one_file_system: false,
            is_excluded: &|_| false,
            progress: &Unwatched,
        },
    )
}

fn archive(entries: &[Vec<u8>]) -> Vec<u8> {
    [entries.concat(), trailer()].concat()
}

fn sha256(content: &[u8]) -> Vec<u8> {
    HashAlg::Sha256.digest(&[content]).as_bytes().to_vec()
}

fn simple(name: &str, content: &[u8]) -> Vec<u8> {
    archive(&[entry(name, PROGRAM, 1, 1, content)])
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

/// Legacy LZ4, a block per 8 MiB.
fn lz4(bytes: &[u8]) -> Vec<u8> {
    let mut packed = LZ4_LEGACY.to_vec();
    for block in bytes.chunks(LZ4_BLOCK_LEN) {
        let block = lz4_flex::block::compress(block);
        packed.extend((block.len() as u32).to_le_bytes());
        packed.extend(block);
    }
    packed
}

fn xz() -> Vec<u8> {
    xz_stored(&simple("xz", b"packed by xz"))
}

/// An xz stream of one uncompressed LZMA2 chunk and no check (The .xz File Format 1.1.0).
fn xz_stored(content: &[u8]) -> Vec<u8> {
    let crc = |bytes: &[u8]| {
        let mut crc = flate2::Crc::new();
        crc.update(bytes);
        crc.sum().to_le_bytes()
    };
    let flags = [0, 0];
    let mut stream = [XZ, &flags, &crc(&flags)].concat();
    let header = [2, 0, 0x21, 1, 0x16, 0, 0, 0];
    stream.extend(header);
    stream.extend(crc(&header));
    let block_start = stream.len() - 12;
    // An uncompressed chunk that resets the dictionary, and the end.
    stream.push(1);
    stream.extend((content.len() as u16 - 1).to_be_bytes());
    stream.extend(content);
    stream.push(0);
    let unpadded = stream.len() - block_start;
    stream.resize(stream.len() + unpadded.next_multiple_of(4) - unpadded, 0);
    let mut index = vec![0, 1];
    for value in [unpadded, content.len()] {
        let mut value = value;
        while value >= 0x80 {
            index.push(value as u8 | 0x80);
            value >>= 7;
        }
        index.push(value as u8);
    }
    index.resize(index.len().next_multiple_of(4), 0);
    index.extend(crc(&index));
    stream.extend(&index);
    let footer = [&(index.len() as u32 / 4 - 1).to_le_bytes()[..], &flags].concat();
    stream.extend(crc(&footer));
    stream.extend(footer);
    stream.extend(b"YZ");
    stream
}

#[test]
fn parts_of_every_compression_are_unpacked_one_after_another() {
    let zeros = [0; 512];
    let whole = [
        simple("early/microcode", b"plain"),
        zeros.to_vec(),
        gzip(&simple("gzip", b"packed by gzip")),
        gzip(&simple("gzip2", b"again")),
        zstd(&[simple("zstd", b"packed by zstd"), zeros.to_vec(), simple("zstd2", b"second archive within")].concat()),
        xz(),
        zeros.to_vec(),
        lz4(&simple("lz4", b"packed by lz4")),
        simple("last", b"after lz4"),
        zeros.to_vec(),
    ]
    .concat();
    let found = found(&whole).unwrap();
    let expected = [
        ("/early/microcode", &b"plain"[..]),
        ("/gzip", b"packed by gzip"),
        ("/gzip2", b"again"),
        ("/last", b"after lz4"),
        ("/lz4", b"packed by lz4"),
        ("/xz", b"packed by xz"),
        ("/zstd", b"packed by zstd"),
        ("/zstd2", b"second archive within"),
    ];
    let expected = expected.map(|(path, content)| (path.to_owned(), sha256(content)));
    assert_eq!(found.files.into_iter().collect::<Vec<_>>(), expected);
}

#[test]
fn later_entries_replace_earlier_ones_and_paths_lead_through_links() {
    let found = found(&archive(&[
        entry("usr", DIR, 1, 2, b""),
        entry("usr/bin", DIR, 2, 2, b""),
        entry("bin", LINK, 3, 1, b"usr/bin"),
        entry("sbin", LINK, 4, 1, b"/usr/../bin"),
        entry("./bin/sh", PROGRAM, 5, 1, b"first"),
        entry("/usr/bin/sh", PROGRAM, 6, 1, b"second"),
        entry("sbin/init", PROGRAM, 7, 1, b"init"),
        entry("was/file", FILE, 8, 1, b"x"),
        entry("was/file", LINK, 9, 1, b"/usr/bin/sh"),
        entry("../../escape", FILE, 10, 1, b"stays inside"),
        entry("a", LINK, 11, 1, b"b"),
        entry("b", LINK, 12, 1, b"a"),
        entry("a/circle", FILE, 13, 1, b"nowhere"),
        entry("dev/console", 0o020_600, 14, 1, b""),
    ]))
    .unwrap();
    let files: Vec<(&str, Vec<u8>)> =
        found.files.iter().map(|(path, digest)| (path.as_str(), digest.clone())).collect();
    assert_eq!(
        files,
        [("/escape", sha256(b"stays inside")), ("/usr/bin/init", sha256(b"init")), ("/usr/bin/sh", sha256(b"second"))]
    );
    assert_eq!(found.notes.iter().map(|note| note.code).collect::<Vec<_>>(), ["path_in_circles"]);
}

#[test]
fn hard_links_share_the_content_that_comes_with_one_of_them() {
    let found = found(
        &[
            archive(&[
                entry("one", PROGRAM, 7, 3, b""),
                entry("two", PROGRAM, 7, 3, b""),
                entry("three", PROGRAM, 7, 3, b"shared"),
                entry("other", PROGRAM, 8, 1, b""),
            ]),
            // Inode numbers mean nothing beyond their archive.
            archive(&[entry("four", PROGRAM, 7, 2, b"own")]),
        ]
        .concat(),
    )
    .unwrap();
    for name in ["/one", "/two", "/three"] {
        assert_eq!(found.files[name], sha256(b"shared"), "{name}");
    }
    assert_eq!((&found.files["/other"], &found.files["/four"]), (&sha256(b""), &sha256(b"own")));
}

#[test]
fn long_files_are_hashed_as_they_come() {
    let content: Vec<u8> = (0..MAX_JOB_LEN + 5).map(|at| at as u8).collect();
    let whole = simple("long", &content);
    for packed in [whole.clone(), gzip(&whole), lz4(&whole)] {
        assert_eq!(found(&packed).unwrap().files["/long"], sha256(&content));
    }
}

#[test]
fn only_executables_and_files_that_are_not_excluded_are_taken_where_that_is_wanted() {
    let whole = archive(&[
        entry("bin", PROGRAM, 1, 1, b"#!"),
        entry("lib", FILE, 2, 1, b"\x7fELF"),
        entry("x.ko", FILE, 3, 1, b"module"),
        entry("text", FILE, 4, 1, b"text"),
    ]);
    let options = Options {
        alg: HashAlg::Sha1,
        executable_only: true,
        one_file_system: false,
        is_excluded: &|path| path == b"/bin",
        progress: &Unwatched,
    };
    let found = read_from(whole.as_slice(), &options).unwrap();
    assert_eq!(found.files.keys().map(String::as_str).collect::<Vec<_>>(), ["/lib", "/x.ko"]);
    assert_eq!((found.excluded, found.not_executable), (1, 1));
    assert_eq!(found.files["/lib"], HashAlg::Sha1.digest(&[b"\x7fELF"]).as_bytes());
}

#[test]
fn every_truncated_prefix_is_refused() {
    let whole = archive(&[entry("a", FILE, 1, 1, b"content")]);
    for packed in [whole.clone(), gzip(&whole), zstd(&whole), xz(), lz4(&whole)] {
        assert!(found(&packed).is_ok());
        for len in 0..packed.len() {
            // Some compressions end where they like; what they hold still has to be whole.
            match found(&packed[..len]) {
                Err(RootfsError::Initrd { .. }) => {}
                other => panic!("{len} of {}: {other:?}", packed.len()),
            }
        }
    }
}

#[test]
fn what_follows_an_archive_has_to_be_one() {
    let whole = simple("a", b"content");
    for (junk, expected) in [
        (&b"junk"[..], "neither an archive nor a compression that is known begins here"),
        (b"BZh91AY&SY", "this part is compressed with bzip2: unpack it first"),
        (b"070707000000", "no entry begins here (070701 or 070702 expected)"),
    ] {
        let bytes = [&whole, junk].concat();
        let error = found(&bytes).unwrap_err();
        let RootfsError::Initrd { offset, problem } = error else { panic!("{error}") };
        assert_eq!(offset, whole.len() as u64);
        assert!(problem.contains(expected) || problem.contains("ends within"), "{problem}");
    }
    assert!(found(&gzip(&[&whole[..], b"junk"].concat())).is_err());
    for empty in [&b""[..], &[0; 64], &gzip(b""), &gzip(&[0; 64]), &lz4(b"")] {
        let Err(RootfsError::Initrd { problem, .. }) = found(empty) else { panic!("{empty:?}") };
        assert!(problem.contains("no archive in it"), "{problem}");
    }
}

#[test]
fn files_are_recognised_by_their_beginning() {
    assert!(is_initrd(b"070701") && is_initrd(&gzip(b"")) && is_initrd(b"BZh9"));
    assert!(!is_initrd(b"#!/bin/sh") && !is_initrd(b"") && !is_initrd(b"07070"));
}
