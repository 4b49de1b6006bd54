//! As much of an ELF file as it takes to say what a program needs at run time and what its bytes are spent on: header,
//! segments, sections, symbols. 32 and 64 bits, little-endian.

use anyhow::{Context, Result, bail};

/// An ELF file, its tables read.
#[derive(Clone, Debug)]
pub(crate) struct Elf {
    kind: u16,
    segments: Vec<Segment>,
    /// In the file's order.
    pub(crate) sections: Vec<Section>,
    /// Those of the symbol table that have a section and a size; none where the program is stripped.
    pub(crate) symbols: Vec<Symbol>,
    has_needed: bool,
}

/// A part of the file that has a meaning for the loader.
#[derive(Clone, Copy, Debug)]
struct Segment {
    kind: u32,
    flags: u32,
    offset: u64,
    address: u64,
    len: u64,
}

/// A section.
#[derive(Clone, Debug)]
pub(crate) struct Section {
    /// `.text` and the like.
    pub(crate) name: String,
    /// Bytes in memory, or in the file where it is not loaded.
    pub(crate) len: u64,
    kind: u32,
    flags: u64,
    offset: u64,
    link: u32,
    entry_len: u64,
}

impl Section {
    /// Whether a running program has it in memory.
    pub(crate) const fn is_loaded(&self) -> bool {
        self.flags & SHF_ALLOC != 0
    }

    /// Whether the file holds its bytes: `.bss` has none.
    pub(crate) const fn is_in_file(&self) -> bool {
        self.kind != SHT_NOBITS
    }

    /// Whether it is written to at run time.
    pub(crate) const fn is_writable(&self) -> bool {
        self.flags & SHF_WRITE != 0
    }

    fn bytes<'a>(&self, file: &'a [u8]) -> Result<&'a [u8]> {
        slice(file, self.offset, self.len)
    }
}

/// A function or an object.
#[derive(Clone, Debug)]
pub(crate) struct Symbol {
    /// As the compiler wrote it.
    pub(crate) name: String,
    /// Where it starts.
    pub(crate) address: u64,
    /// Bytes.
    pub(crate) len: u64,
    /// Index into [`Elf::sections`].
    pub(crate) section: usize,
}

impl Elf {
    /// Reads the tables of a file.
    ///
    /// # Errors
    /// When it is not a little-endian ELF file, or ends before its tables do.
    pub(crate) fn parse(file: &[u8]) -> Result<Self> {
        let wide = match file.get(..6) {
            Some(&[0x7f, b'E', b'L', b'F', 2, 1]) => true,
            Some(&[0x7f, b'E', b'L', b'F', 1, 1]) => false,
            _ => bail!("not a little-endian ELF file"),
        };
        let fields = Fields { file, wide };
        let mut elf = Self {
            kind: fields.u16(16)?,
            segments: Vec::new(),
            sections: Vec::new(),
            symbols: Vec::new(),
            has_needed: false,
        };
        let (segments, sections) = if wide { (0x20, 0x28) } else { (0x1c, 0x20) };
        let counts = if wide { 0x36 } else { 0x2a };
        let segments = fields.word(segments)?;
        let segment_len = u64::from(fields.u16(counts)?);
        for index in 0..u64::from(fields.u16(counts + 2)?) {
            elf.segments.push(fields.segment(at(segments, index, segment_len)?)?);
        }
        let sections = fields.word(sections)?;
        let section_len = u64::from(fields.u16(counts + 4)?);
        for index in 0..u64::from(fields.u16(counts + 6)?) {
            elf.sections.push(fields.section(at(sections, index, section_len)?)?);
        }
        let names = elf.sections.get(usize::from(fields.u16(counts + 8)?)).map(|section| section.bytes(file));
        if let Some(names) = names.transpose()? {
            for section in &mut elf.sections {
                // Until now the name's place is in it.
                let place = section.name.parse()?;
                section.name = text(names, place)?;
            }
        }
        for section in elf.sections.clone() {
            match section.kind {
                SHT_SYMTAB => elf.read_symbols(&fields, &section)?,
                SHT_DYNAMIC => elf.has_needed |= needs(&fields, &section)?,
                _ => {}
            }
        }
        Ok(elf)
    }

    /// Whether it runs without a loader and without a library: no PT_INTERP, no DT_NEEDED.
    pub(crate) fn is_static(&self) -> bool {
        !self.segments.iter().any(|segment| segment.kind == PT_INTERP) && !self.has_needed
    }

    /// Whether it can be loaded at any address, so that the kernel chooses a new one each time.
    pub(crate) const fn is_position_independent(&self) -> bool {
        self.kind == ET_DYN
    }

    /// Whether what is loaded lies in memory as it does in the file, to the page, and no page holds parts with different
    /// rights. `page_len` is the largest that kernels for this processor use.
    pub(crate) fn is_laid_out_for(&self, page_len: u64) -> bool {
        let loaded: Vec<&Segment> = self.segments.iter().filter(|segment| segment.kind == PT_LOAD).collect();
        let page = |address: u64| address / page_len;
        let fits = |segment: &&Segment| segment.address % page_len == segment.offset % page_len;
        let apart = |pair: &[&Segment]| match pair {
            [one, other] => {
                one.flags == other.flags || page(one.address.saturating_add(one.len).max(1) - 1) < page(other.address)
            }
            _ => true,
        };
        !loaded.is_empty() && loaded.iter().all(fits) && loaded.windows(2).all(apart)
    }

    fn read_symbols(&mut self, fields: &Fields<'_>, table: &Section) -> Result<()> {
        let names = self.sections.get(table.link as usize).context("a symbol table without names")?;
        let names = names.bytes(fields.file)?;
        for index in 0..table.len.checked_div(table.entry_len).unwrap_or(0) {
            let entry = at(table.offset, index, table.entry_len)?;
            let place = fields.u32(entry)?;
            let (address, len, section) = if fields.wide {
                (fields.u64(entry + 8)?, fields.u64(entry + 16)?, fields.u16(entry + 6)?)
            } else {
                (fields.u32(entry + 4)?.into(), fields.u32(entry + 8)?.into(), fields.u16(entry + 14)?)
            };
            let section = usize::from(section);
            if len > 0 && section > 0 && section < self.sections.len() {
                self.symbols.push(Symbol { name: text(names, place)?, address, len, section });
            }
        }
        Ok(())
    }
}

/// Whether a dynamic section names a library.
fn needs(fields: &Fields<'_>, dynamic: &Section) -> Result<bool> {
    for index in 0..dynamic.len.checked_div(dynamic.entry_len).unwrap_or(0) {
        if fields.word(at(dynamic.offset, index, dynamic.entry_len)?)? == DT_NEEDED {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Numbers at places of a file.
struct Fields<'a> {
    file: &'a [u8],
    wide: bool,
}

impl Fields<'_> {
    fn u16(&self, offset: u64) -> Result<u16> {
        Ok(u16::from_le_bytes(slice(self.file, offset, 2)?.try_into()?))
    }

    fn u32(&self, offset: u64) -> Result<u32> {
        Ok(u32::from_le_bytes(slice(self.file, offset, 4)?.try_into()?))
    }

    fn u64(&self, offset: u64) -> Result<u64> {
        Ok(u64::from_le_bytes(slice(self.file, offset, 8)?.try_into()?))
    }

    /// An address or a length.
    fn word(&self, offset: u64) -> Result<u64> {
        if self.wide { self.u64(offset) } else { self.u32(offset).map(u64::from) }
    }

    fn segment(&self, header: u64) -> Result<Segment> {
        let kind = self.u32(header)?;
        Ok(if self.wide {
            let (flags, offset) = (self.u32(header + 4)?, self.u64(header + 8)?);
            Segment { kind, flags, offset, address: self.u64(header + 16)?, len: self.u64(header + 40)? }
        } else {
            let (flags, offset) = (self.u32(header + 24)?, self.word(header + 4)?);
            Segment { kind, flags, offset, address: self.word(header + 8)?, len: self.word(header + 20)? }
        })
    }

    fn section(&self, header: u64) -> Result<Section> {
        let word_len = if self.wide { 8 } else { 4 };
        let word = |index: u64| self.word(header + 8 + index * word_len);
        // Flags, address, offset and length are words; then come two numbers of 32 bits, alignment, entry length.
        let link = header + 8 + 4 * word_len;
        Ok(Section {
            name: self.u32(header)?.to_string(),
            kind: self.u32(header + 4)?,
            flags: word(0)?,
            offset: word(2)?,
            len: word(3)?,
            link: self.u32(link)?,
            entry_len: self.word(link + 8 + word_len)?,
        })
    }
}

fn at(table: u64, index: u64, len: u64) -> Result<u64> {
    // Room is left for the fields' own offsets.
    let place = index.checked_mul(len).and_then(|offset| table.checked_add(offset)).filter(|&at| at < u64::MAX / 2);
    place.context("a table reaches beyond all addresses")
}

fn slice(file: &[u8], offset: u64, len: u64) -> Result<&[u8]> {
    let range = usize::try_from(offset).ok().zip(offset.checked_add(len).and_then(|end| usize::try_from(end).ok()));
    range.and_then(|(start, end)| file.get(start..end)).context("an ELF file that ends too early")
}

fn text(names: &[u8], place: u32) -> Result<String> {
    let rest = names.get(place as usize..).context("a name outside its table")?;
    let end = rest.iter().position(|&byte| byte == 0).unwrap_or(rest.len());
    Ok(String::from_utf8_lossy(rest.get(..end).unwrap_or_default()).into_owned())
}

const ET_DYN: u16 = 3;
const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;
const SHT_SYMTAB: u32 = 2;
const SHT_DYNAMIC: u32 = 6;
const SHT_NOBITS: u32 = 8;
const SHF_WRITE: u64 = 1;
const SHF_ALLOC: u64 = 2;
const DT_NEEDED: u64 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    /// This test itself: dynamic, position-independent, with symbols.
    fn this() -> Vec<u8> {
        std::fs::read(std::env::current_exe().unwrap()).unwrap()
    }

    #[test]
    fn a_dynamic_program_is_seen_to_be_one() {
        let elf = Elf::parse(&this()).unwrap();
        assert!(!elf.is_static() && elf.is_position_independent());
        assert!(elf.segments.iter().any(|segment| segment.kind == PT_INTERP) && elf.has_needed);
    }

    #[test]
    fn sections_and_symbols_have_their_names_and_lengths() {
        let elf = Elf::parse(&this()).unwrap();
        let text = elf.sections.iter().position(|section| section.name == ".text").unwrap();
        let section = &elf.sections[text];
        assert!(section.is_loaded() && section.is_in_file() && !section.is_writable());
        assert!(elf.sections.iter().any(|section| section.name == ".bss" && !section.is_in_file()));
        let main = elf.symbols.iter().find(|symbol| symbol.name == "main").unwrap();
        assert!(main.section == text && main.len < section.len);
    }

    #[test]
    fn parts_with_different_rights_share_no_page() {
        let mut elf = Elf::parse(&this()).unwrap();
        assert!(elf.is_laid_out_for(4096));
        let last = elf.segments.iter().rposition(|segment| segment.kind == PT_LOAD).unwrap();
        elf.segments[last].offset += 8;
        assert!(!elf.is_laid_out_for(4096), "moved in the file only");
        elf.segments[last].offset -= 8;
        let first = *elf.segments.iter().find(|segment| segment.kind == PT_LOAD).unwrap();
        elf.segments[last] = Segment { flags: first.flags + 1, ..first };
        assert!(!elf.is_laid_out_for(4096), "on another's page");
        elf.segments.clear();
        assert!(!elf.is_laid_out_for(4096));
    }

    #[test]
    fn every_shorter_file_is_refused_or_says_less_but_never_panics() {
        let mut file = this();
        assert!(Elf::parse(b"#!/bin/sh\n").is_err());
        for len in (0..64).chain([65, 100, 1000, 4096]) {
            assert!(Elf::parse(&file[..len]).is_err(), "{len} bytes");
        }
        for (at, byte) in [(0x20, 0xff), (0x27, 0xff), (0x28, 0xff), (0x2f, 0x7f), (0x36, 0xff), (0x3e, 0xff)] {
            let kept = std::mem::replace(&mut file[at], byte);
            let _ = Elf::parse(&file);
            file[at] = kept;
        }
    }
}
