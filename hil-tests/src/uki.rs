//! Puts kernel, command line and initramfs behind systemd's EFI stub: a unified kernel image, one file that firmware
//! measures and one signature can cover (UAPI group, "Unified Kernel Image").
//!
//! Only what our images need: new sections behind the stub's own, nothing signed, nothing moved. `ukify` does more.

use sha2::{Digest, Sha256};

/// One section of a unified kernel image.
#[derive(Clone, Copy, Debug)]
pub struct Section<'a> {
    /// Its name, with the dot, at most 8 bytes.
    pub name: &'a str,
    /// What is in it.
    pub content: &'a [u8],
}

/// The sections in the order in which they are put behind the stub: the kernel last, because it may use the memory that
/// follows it before it has moved.
pub fn sections<'a>(kernel: &'a [u8], command_line: &'a str, initrd: &'a [u8]) -> [Section<'a>; 3] {
    [
        Section { name: ".cmdline", content: command_line.as_bytes() },
        Section { name: ".initrd", content: initrd },
        Section { name: ".linux", content: kernel },
    ]
}

/// Why a stub cannot be used.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each message says it")]
pub enum UkiError {
    #[error("the stub is not an EFI program for 64 bits")]
    NotEfi,
    #[error("the stub has no room for another section header")]
    NoRoom,
    #[error("the stub has a section with that name already: it is a whole image, not a stub")]
    Whole,
    #[error("a section's name is longer than 8 bytes, or a section larger than an EFI program may be")]
    TooLarge,
}

/// The stub with these sections behind its own.
///
/// # Errors
/// [`UkiError`]: what is wrong with the stub or a section.
pub fn build(stub: &[u8], sections: &[Section<'_>]) -> Result<Vec<u8>, UkiError> {
    let header = Header::read(stub)?;
    let table_end = header.table + SECTION_LEN * header.count;
    let new_end = table_end + SECTION_LEN * sections.len();
    let own: Vec<&[u8]> = stub.get(header.table..table_end).ok_or(UkiError::NotEfi)?.chunks(SECTION_LEN).collect();
    let mut address = 0;
    let mut first_content = header.headers_len;
    for section in &own {
        let at = |offset| u32_at(section, offset).ok_or(UkiError::NotEfi);
        let (size, begin, stored, content) = (at(8)?, at(12)?, at(16)?, at(20)?);
        if u64::from(content) + u64::from(stored) > stub.len() as u64 {
            return Err(UkiError::NotEfi);
        }
        address = address.max(begin.checked_add(size).ok_or(UkiError::NotEfi)?);
        if content != 0 {
            first_content = first_content.min(content);
        }
    }
    if new_end > first_content as usize {
        return Err(UkiError::NoRoom);
    }

    let mut image = stub.to_vec();
    for (number, section) in sections.iter().enumerate() {
        let mut name = [0; 8];
        name.get_mut(..section.name.len()).ok_or(UkiError::TooLarge)?.copy_from_slice(section.name.as_bytes());
        if own.iter().any(|other| other.get(..8) == Some(&name)) {
            return Err(UkiError::Whole);
        }
        let size = u32::try_from(section.content.len()).map_err(|_| UkiError::TooLarge)?;
        address = aligned(address, PAGE_LEN.max(header.section_alignment))?;
        image.resize(aligned(image.len() as u64, header.file_alignment)? as usize, 0);
        let place = u32::try_from(image.len()).map_err(|_| UkiError::TooLarge)?;
        image.extend_from_slice(section.content);
        image.resize(aligned(image.len() as u64, header.file_alignment)? as usize, 0);
        let stored = u32::try_from(image.len()).map_err(|_| UkiError::TooLarge)? - place;

        let mut entry = [0; SECTION_LEN];
        let fields = [(8, size), (12, address), (16, stored), (20, place), (36, READABLE_DATA)];
        entry[..8].copy_from_slice(&name);
        for (at, value) in fields {
            entry[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        let at = table_end + SECTION_LEN * number;
        image.get_mut(at..at + SECTION_LEN).ok_or(UkiError::NoRoom)?.copy_from_slice(&entry);
        address = address.checked_add(size).ok_or(UkiError::TooLarge)?;
    }
    let count = u16::try_from(header.count + sections.len()).map_err(|_| UkiError::NoRoom)?;
    let image_len = aligned(address, PAGE_LEN.max(header.section_alignment))?;
    for (at, bytes) in [
        (header.coff + 2, count.to_le_bytes().as_slice()),
        (header.optional + 56, image_len.to_le_bytes().as_slice()),
        // The checksum: firmware looks at it only in drivers, zero says that there is none.
        (header.optional + 64, [0; 4].as_slice()),
    ] {
        image.get_mut(at..at + bytes.len()).ok_or(UkiError::NotEfi)?.copy_from_slice(bytes);
    }
    Ok(image)
}

/// What PCR 11 of the SHA-256 bank holds after systemd's stub has measured these sections, and nothing else has: name
/// with its closing NUL, then content, in the stub's own order (systemd-stub(7)).
pub fn pcr_11(sections: &[Section<'_>]) -> [u8; 32] {
    const ORDER: [&str; 4] = [".linux", ".osrel", ".cmdline", ".initrd"];
    let mut value = [0; 32];
    for section in ORDER.iter().filter_map(|name| sections.iter().find(|section| section.name == *name)) {
        for digest in [Sha256::digest([section.name.as_bytes(), b"\0"].concat()), Sha256::digest(section.content)] {
            value = Sha256::digest([value.as_slice(), digest.as_slice()].concat()).into();
        }
    }
    value
}

/// Where a PE32+ file's headers are (Microsoft PE format, "COFF file header", "Optional header").
struct Header {
    coff: usize,
    optional: usize,
    table: usize,
    count: usize,
    section_alignment: u32,
    file_alignment: u32,
    headers_len: u32,
}

impl Header {
    fn read(stub: &[u8]) -> Result<Self, UkiError> {
        let u32_of = |at| u32_at(stub, at).ok_or(UkiError::NotEfi);
        let u16_of = |at| u32_of(at).map(|value| (value & 0xffff) as usize);
        let begin = u32_of(0x3c)? as usize;
        if stub.get(..2) != Some(b"MZ") || begin > stub.len() || stub.get(begin..begin + 4) != Some(b"PE\0\0") {
            return Err(UkiError::NotEfi);
        }
        let coff = begin + 4;
        let optional = coff + 20;
        // PE32+, for a program that EFI runs.
        if u16_of(optional)? != 0x20b || u16_of(optional + 68)? != 10 {
            return Err(UkiError::NotEfi);
        }
        let header = Self {
            coff,
            optional,
            table: optional + u16_of(coff + 16)?,
            count: u16_of(coff + 2)?,
            section_alignment: u32_of(optional + 32)?,
            file_alignment: u32_of(optional + 36)?,
            headers_len: u32_of(optional + 60)?,
        };
        let sane = |alignment: u32| alignment.is_power_of_two() && alignment <= 0x1_0000;
        if sane(header.section_alignment) && sane(header.file_alignment) { Ok(header) } else { Err(UkiError::NotEfi) }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_le_bytes)
}

fn aligned(value: impl Into<u64>, alignment: u32) -> Result<u32, UkiError> {
    u32::try_from(value.into().next_multiple_of(u64::from(alignment))).map_err(|_| UkiError::TooLarge)
}

const SECTION_LEN: usize = 40;
const PAGE_LEN: u32 = 4096;
/// `IMAGE_SCN_CNT_INITIALIZED_DATA | IMAGE_SCN_MEM_READ`
const READABLE_DATA: u32 = 0x4000_0040;

#[cfg(test)]
mod tests {
    use super::*;

    /// An EFI program with one section of 16 bytes and room for `room` more headers.
    fn stub(room: usize) -> Vec<u8> {
        let mut file = vec![0; 0x400];
        let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"MZ");
        put(0x3c, &0x80u32.to_le_bytes());
        put(0x80, b"PE\0\0");
        put(0x86, &1u16.to_le_bytes());
        // The optional header is made so long that so much room is left in the first 512 bytes.
        let optional_len = 0x200 - 0x98 - SECTION_LEN * (1 + room);
        put(0x94, &(optional_len as u16).to_le_bytes());
        for (at, value) in [(0, 0x20b), (32, 512), (36, 512), (56, 0x1200), (60, 0x200), (64, 0xdead), (68, 10)] {
            put(0x98 + at, &u32::to_le_bytes(value));
        }
        let table = 0x98 + optional_len;
        put(table, b".text");
        for (at, value) in [(8, 16), (12, 0x1000), (16, 0x200), (20, 0x200)] {
            put(table + at, &u32::to_le_bytes(value));
        }
        file
    }

    /// Name, content by its virtual size, and address of each section.
    fn read(image: &[u8]) -> Vec<(String, Vec<u8>, u32)> {
        let header = Header::read(image).unwrap();
        let table = &image[header.table..header.table + SECTION_LEN * header.count];
        let field = |section: &[u8], at| u32_at(section, at).unwrap();
        let one = |section: &[u8]| {
            let name = String::from_utf8_lossy(&section[..8]).trim_end_matches('\0').to_owned();
            let (len, place) = (field(section, 8) as usize, field(section, 20) as usize);
            (name, image[place..place + len].to_vec(), field(section, 12))
        };
        table.chunks(SECTION_LEN).map(one).collect()
    }

    #[test]
    fn sections_come_behind_the_stubs_own_in_file_and_memory() {
        let image = build(&stub(3), &sections(&[7; 5000], "root=x", b"initrd")).unwrap();
        let found = read(&image);
        let names: Vec<&str> = found.iter().map(|(name, _, _)| name.as_str()).collect();
        assert_eq!(names, [".text", ".cmdline", ".initrd", ".linux"]);
        assert_eq!([&found[1].1, &found[2].1, &found[3].1], [&b"root=x".to_vec(), &b"initrd".to_vec(), &vec![7; 5000]]);
        assert_eq!(found.iter().map(|section| section.2).collect::<Vec<_>>(), [0x1000, 0x2000, 0x3000, 0x4000]);
        let header = Header::read(&image).unwrap();
        assert_eq!(u32_at(&image, header.optional + 56), Some(0x6000));
        assert_eq!(u32_at(&image, header.optional + 64), Some(0));
        assert!(image.len().is_multiple_of(512));
        assert_eq!(image, build(&stub(3), &sections(&[7; 5000], "root=x", b"initrd")).unwrap());
    }

    #[test]
    fn a_stub_that_cannot_take_them_is_refused() {
        let some = sections(b"kernel", "", b"");
        assert_eq!(build(&stub(2), &some), Err(UkiError::NoRoom));
        let whole = build(&stub(6), &some).unwrap();
        assert_eq!(build(&whole, &some), Err(UkiError::Whole));
        assert_eq!(build(&stub(3), &[Section { name: ".too-long", content: b"" }]), Err(UkiError::TooLarge));
        for (at, byte) in [(0, b'X'), (0x80, b'X'), (0x98, 0), (0x98 + 68, 11), (0x98 + 32, 3)] {
            let mut other = stub(3);
            other[at] = byte;
            assert_eq!(build(&other, &some), Err(UkiError::NotEfi), "byte {at}");
        }
        let good = stub(3);
        for len in 0..good.len() {
            assert!(build(&good[..len], &some).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn pcr_11_is_extended_by_name_and_content_in_the_stubs_order() {
        let hash = |parts: &[&[u8]]| -> [u8; 32] { Sha256::digest(parts.concat()).into() };
        let mut value = [0; 32];
        let parts: [&[u8]; 6] = [b".linux\0", b"k", b".cmdline\0", b"c", b".initrd\0", b"i"];
        for part in parts {
            value = hash(&[&value, &hash(&[part])]);
        }
        assert_eq!(pcr_11(&sections(b"k", "c", b"i")), value);
    }
}
