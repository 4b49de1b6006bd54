//! An initrd as the kernel unpacks it: cpio archives one after another, each plain or compressed, zeros between them
//! (kernel documentation, "initramfs buffer format"). Later entries replace earlier ones, hard links share content, and
//! paths lead through the links that were unpacked before.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, BufRead, Read};
use std::path::Path;
use std::sync::mpsc::SyncSender;

use flate2::bufread::GzDecoder;
use lzma_rust2::XzReader;
use ruzstd::decoding::StreamingDecoder;

use super::cpio::{self, CpioError, Header};
use super::{CHUNK_LEN, Found, Hasher, Options, RootfsError, is_executable, pool};

/// Bytes that are unpacked at most, whatever a small file claims to hold.
pub const MAX_UNPACKED_LEN: u64 = 64 * 1024 * 1024 * 1024;
/// Entries of all archives together.
pub const MAX_ENTRIES: usize = super::MAX_FILES;
/// Memory that a decompressor may take for its window, in KiB.
const MAX_WINDOW_KIB: u32 = 256 * 1024;
/// Bytes of a file that goes to another thread whole; longer ones are hashed as they are unpacked.
const MAX_JOB_LEN: u32 = 2 * 1024 * 1024;
/// Bytes of all paths together.
const MAX_NAMES_LEN: usize = 512 * 1024 * 1024;
/// Links that one path may lead through, as in the kernel.
const MAX_LINKS: usize = 40;

const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
const XZ: &[u8] = &[0xfd, b'7', b'z', b'X', b'Z', 0];
const LZ4_LEGACY: &[u8] = &[0x02, 0x21, 0x4c, 0x18];
/// What a block of legacy LZ4 holds unpacked, at most.
const LZ4_BLOCK_LEN: usize = 8 * 1024 * 1024;
/// What such a block takes at most, packed.
const LZ4_PACKED_LEN: usize = LZ4_BLOCK_LEN + LZ4_BLOCK_LEN / 255 + 16;
/// Compressions that are recognised, to be named: not read.
const OTHERS: [(&[u8], &str); 5] = [
    (b"BZh", "bzip2"),
    (&[0x5d, 0, 0], "LZMA (not xz)"),
    (&[0x89, b'L', b'Z', b'O'], "LZO"),
    (&[0x04, 0x22, 0x4d, 0x18], "LZ4's frame format, which Linux does not unpack"),
    (&[0x1f, 0x9e], "gzip of an old kind"),
];

/// Whether a file begins like an initrd.
pub fn is_initrd(start: &[u8]) -> bool {
    let magics = [b"070701".as_slice(), b"070702", GZIP, ZSTD, XZ, LZ4_LEGACY];
    magics.iter().chain(OTHERS.iter().map(|(magic, _)| magic)).any(|magic| start.starts_with(magic))
}

/// Hashes every regular file that an initrd unpacks to.
///
/// # Errors
/// [`RootfsError`]; where in the file it stopped is named, for compressed parts where they begin.
pub fn read(path: &Path, options: &Options<'_>) -> Result<Found, RootfsError> {
    let at = |source: io::Error| RootfsError::Io { path: path.into(), source };
    let file = File::open(path).map_err(at)?;
    options.progress.expect(file.metadata().map_err(at)?.len(), None);
    read_from(file, options)
}

/// As [`read`], of any reader.
///
/// # Errors
/// As [`read`].
pub fn read_from<R: Read>(reader: R, options: &Options<'_>) -> Result<Found, RootfsError> {
    let mut source = Source::new(reader, options);
    let mut unpacked = Unpacked::default();
    let left = Cell::new(MAX_UNPACKED_LEN);
    let answers = pool::run(
        |job: Job, _| {
            let mut hasher = Hasher::new(options.alg);
            hasher.update(&job.content);
            (job.number, hasher.finish())
        },
        |jobs| unpack(&mut source, &mut Sink { unpacked: &mut unpacked, jobs, options, left: &left }),
    )?;
    let digests: HashMap<usize, Vec<u8>> = answers.into_iter().chain(unpacked.hashed).collect();
    let mut found = Found::default();
    let empty = Hasher::new(options.alg).finish();
    for (path, node) in unpacked.nodes {
        let Node::File(at) = node else { continue };
        let Some(inode) = unpacked.inodes.get(at) else { continue };
        let path = [b"/".as_slice(), &path].concat();
        if (options.is_excluded)(&path) {
            found.excluded += 1;
        } else if options.executable_only && !is_executable(inode.mode, &path, &inode.start) {
            found.not_executable += 1;
        } else {
            found.bytes += u64::from(inode.size);
            let digest = inode.content.and_then(|number| digests.get(&number)).unwrap_or(&empty);
            found.add(&path, digest.clone());
        }
    }
    found.notes.extend(unpacked.notes.notes);
    found.notes_left_out += unpacked.notes.notes_left_out;
    Ok(found)
}

/// A file's content on its way to another thread.
struct Job {
    number: usize,
    content: Vec<u8>,
}

/// What a path is.
enum Node {
    File(usize),
    Link(Vec<u8>),
    Other,
}

/// A file, whatever its names.
struct Inode {
    mode: u32,
    size: u32,
    /// Its first bytes.
    start: Vec<u8>,
    /// Which of the contents it has; `None` if it is empty.
    content: Option<usize>,
}

/// What was unpacked so far.
#[derive(Default)]
struct Unpacked {
    nodes: BTreeMap<Vec<u8>, Node>,
    inodes: Vec<Inode>,
    /// Contents so far.
    contents: usize,
    /// Those that were hashed at once.
    hashed: Vec<(usize, Vec<u8>)>,
    /// Hard links of the archive that is being read: device, inode number and type to file.
    links: HashMap<(u32, u32, u32, u32), usize>,
    entries: usize,
    names_len: usize,
    notes: Found,
}

impl Unpacked {
    /// A path without `.` and doubled slashes, through the links that are there; `None` if it leads in circles.
    fn resolve(&self, path: &[u8]) -> Option<Vec<u8>> {
        let mut todo: Vec<&[u8]> = path.split(|byte| *byte == b'/').rev().collect();
        let mut done: Vec<u8> = Vec::new();
        let mut links = 0;
        while let Some(name) = todo.pop() {
            match name {
                b"" | b"." => {}
                b".." => done.truncate(done.iter().rposition(|byte| *byte == b'/').unwrap_or(0)),
                name => {
                    let parent = done.len();
                    if !done.is_empty() {
                        done.push(b'/');
                    }
                    done.extend(name);
                    if done.len() > cpio::MAX_NAME_LEN {
                        return None;
                    }
                    // The last name is what is made; those before it are gone through.
                    let is_last = todo.iter().all(|name| matches!(*name, b"" | b"."));
                    if let Some(Node::Link(target)) = self.nodes.get(&done).filter(|_| !is_last) {
                        links += 1;
                        if links > MAX_LINKS {
                            return None;
                        }
                        done.truncate(if target.starts_with(b"/") { 0 } else { parent });
                        todo.extend(target.split(|byte| *byte == b'/').rev());
                    }
                }
            }
        }
        Some(done)
    }
}

/// Takes entries as they are unpacked.
struct Sink<'s, 'o> {
    unpacked: &'s mut Unpacked,
    jobs: &'s SyncSender<Job>,
    options: &'s Options<'o>,
    /// Bytes that may still be unpacked.
    left: &'s Cell<u64>,
}

/// What ended the unpacking.
enum Stop {
    Cpio(CpioError),
    Problem(String),
}

impl From<CpioError> for Stop {
    fn from(error: CpioError) -> Self {
        Self::Cpio(error)
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Cpio(CpioError::Io(error))
    }
}

impl Stop {
    fn at(self, offset: u64) -> RootfsError {
        let problem = match self {
            Self::Cpio(CpioError::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                "the initrd ends within an archive".to_owned()
            }
            Self::Cpio(error) => error.to_string(),
            Self::Problem(problem) => problem,
        };
        RootfsError::Initrd { offset, problem }
    }
}

/// Every part of an initrd.
fn unpack<R: Read>(source: &mut Source<'_, R>, sink: &mut Sink<'_, '_>) -> Result<(), RootfsError> {
    let mut parts = 0;
    loop {
        let offset = source.skip_zeros().map_err(|error| Stop::from(error).at(source.offset))?;
        let start = source.peek(8).map_err(|error| Stop::from(error).at(offset))?.to_vec();
        if start.is_empty() {
            return if parts > 0 { Ok(()) } else { Err(Stop::Problem("there is no archive in it".into()).at(offset)) };
        }
        parts += 1;
        let unpacked = if start.starts_with(b"07070") {
            archive(source, sink)
        } else if start.starts_with(GZIP) {
            archives(GzDecoder::new(&mut *source), sink)
        } else if start.starts_with(ZSTD) {
            zstd(source, sink)
        } else if start.starts_with(XZ) {
            archives(XzReader::new_mem_limit(&mut *source, false, MAX_WINDOW_KIB), sink)
        } else if start.starts_with(LZ4_LEGACY) {
            archives(Lz4::new(source), sink)
        } else {
            let other = OTHERS.iter().find(|(magic, _)| start.starts_with(magic));
            Err(Stop::Problem(match other {
                Some((_, name)) => format!("this part is compressed with {name}: unpack it first"),
                None => "neither an archive nor a compression that is known begins here".to_owned(),
            }))
        };
        unpacked.map_err(|stop| stop.at(offset))?;
    }
}

/// One frame of zstd, with its checksum if it has one.
fn zstd<R: Read>(source: &mut Source<'_, R>, sink: &mut Sink<'_, '_>) -> Result<(), Stop> {
    let mut decoder = StreamingDecoder::new(source).map_err(|error| Stop::Problem(format!("zstd: {error}")))?;
    archives(&mut decoder, sink)?;
    let frame = decoder.into_frame_decoder();
    match frame.get_checksum_from_data() {
        Some(_) if frame.get_checksum_from_data() != frame.get_calculated_checksum() => {
            Err(Stop::Problem("zstd: the checksum does not fit".to_owned()))
        }
        _ => Ok(()),
    }
}

/// The archives within one compressed part, up to its end.
fn archives(reader: impl Read, sink: &mut Sink<'_, '_>) -> Result<(), Stop> {
    let mut reader = io::BufReader::with_capacity(CHUNK_LEN, reader);
    let mut is_empty = true;
    loop {
        let buffer = reader.fill_buf()?;
        if buffer.is_empty() {
            return if is_empty { Err(Stop::Problem("this part has no archive in it".to_owned())) } else { Ok(()) };
        }
        let zeros = buffer.iter().take_while(|byte| **byte == 0).count();
        if zeros > 0 {
            sink.take(zeros as u64)?;
            reader.consume(zeros);
            continue;
        }
        archive(&mut reader, sink)?;
        is_empty = false;
    }
}

fn archive<R: Read>(reader: &mut R, sink: &mut Sink<'_, '_>) -> Result<(), Stop> {
    sink.unpacked.links.clear();
    cpio::read_archive(reader, |header, content| sink.entry(header, content))
}

impl Sink<'_, '_> {
    fn take(&self, count: u64) -> Result<(), Stop> {
        let left = self.left.get().checked_sub(count);
        let left = left.ok_or_else(|| Stop::Problem(format!("it unpacks to more than {MAX_UNPACKED_LEN} bytes")))?;
        self.left.set(left);
        Ok(())
    }

    fn entry(&mut self, header: &Header, content: &mut impl Read) -> Result<(), Stop> {
        self.take(u64::from(header.size) + cpio::HEADER_LEN as u64 + header.name.len() as u64)?;
        let unpacked = &mut *self.unpacked;
        unpacked.entries += 1;
        unpacked.names_len += header.name.len();
        if unpacked.entries > MAX_ENTRIES || unpacked.names_len > MAX_NAMES_LEN {
            return Err(Stop::Problem(format!("it has more than {MAX_ENTRIES} entries, or too long names")));
        }
        let Some(path) = unpacked.resolve(&header.name) else {
            unpacked.notes.note("path_in_circles", &header.name, "its path leads through too many links; left out");
            return Ok(());
        };
        if header.is_symlink() {
            let mut target = Vec::new();
            content.take(cpio::MAX_NAME_LEN as u64).read_to_end(&mut target)?;
            unpacked.names_len += target.len();
            // Some archivers write the NUL along.
            let len = target.iter().position(|byte| *byte == 0).unwrap_or(target.len());
            target.truncate(len);
            unpacked.nodes.insert(path, Node::Link(target));
            return Ok(());
        }
        if !header.is_file() {
            // A directory that is there already stays what it is, and so does what is in it.
            unpacked.nodes.insert(path, Node::Other);
            return Ok(());
        }
        let link = (header.dev.0, header.dev.1, header.ino, header.mode & 0o170_000);
        let known = unpacked.links.get(&link).copied().filter(|_| header.nlink > 1);
        let inode = known.unwrap_or_else(|| {
            unpacked.inodes.push(Inode { mode: header.mode, size: 0, start: Vec::new(), content: None });
            unpacked.inodes.len() - 1
        });
        if header.nlink > 1 {
            unpacked.links.insert(link, inode);
        }
        unpacked.nodes.insert(path, Node::File(inode));
        self.options.progress.file();
        // The content of a file with several names comes with one of them.
        if header.size > 0 || known.is_none() {
            self.content(inode, header, content)?;
        }
        Ok(())
    }

    fn content(&mut self, at: usize, header: &Header, content: &mut impl Read) -> Result<(), Stop> {
        let unpacked = &mut *self.unpacked;
        let Some(inode) = unpacked.inodes.get_mut(at) else { return Ok(()) };
        (inode.mode, inode.size, inode.content) = (header.mode, header.size, None);
        inode.start.clear();
        if header.size == 0 {
            return Ok(());
        }
        let number = unpacked.contents;
        unpacked.contents += 1;
        inode.content = Some(number);
        if header.size <= MAX_JOB_LEN {
            let mut bytes = Vec::with_capacity(header.size.min(64 * 1024) as usize);
            content.read_to_end(&mut bytes)?;
            inode.start.extend(bytes.iter().take(4));
            pool::send(self.jobs, Job { number, content: bytes })?;
            return Ok(());
        }
        let mut hasher = Hasher::new(self.options.alg);
        let mut buffer = vec![0; CHUNK_LEN];
        let read = content.read(&mut buffer)?;
        let first = buffer.get(..read).unwrap_or_default();
        inode.start.extend(first.iter().take(4));
        hasher.update(first);
        // Progress is told in bytes of the file, not of what is in it.
        hasher.read(content, &mut buffer, &super::Unwatched)?;
        unpacked.hashed.push((number, hasher.finish()));
        Ok(())
    }
}

/// A reader that can look ahead, and counts.
struct Source<'a, R> {
    reader: R,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Bytes consumed.
    offset: u64,
    options: &'a Options<'a>,
}

impl<'a, R: Read> Source<'a, R> {
    fn new(reader: R, options: &'a Options<'a>) -> Self {
        Self { reader, buffer: vec![0; CHUNK_LEN], start: 0, end: 0, offset: 0, options }
    }

    /// The next bytes: `count`, or as many as there are.
    fn peek(&mut self, count: usize) -> io::Result<&[u8]> {
        while self.end - self.start < count {
            if self.start > 0 {
                self.buffer.copy_within(self.start..self.end, 0);
                self.end -= self.start;
                self.start = 0;
            }
            if self.fill_more()? == 0 {
                break;
            }
        }
        let end = self.end.min(self.start + count);
        Ok(self.buffer.get(self.start..end).unwrap_or_default())
    }

    fn fill_more(&mut self) -> io::Result<usize> {
        loop {
            match self.reader.read(self.buffer.get_mut(self.end..).unwrap_or_default()) {
                Ok(read) => {
                    self.end += read;
                    return Ok(read);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Skips zeros, and says where the next byte is.
    fn skip_zeros(&mut self) -> io::Result<u64> {
        loop {
            let buffer = self.fill_buf()?;
            let zeros = buffer.iter().take_while(|byte| **byte == 0).count();
            if zeros == 0 {
                return Ok(self.offset);
            }
            self.consume(zeros);
        }
    }
}

impl<R: Read> BufRead for Source<'_, R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            self.fill_more()?;
        }
        Ok(self.buffer.get(self.start..self.end).unwrap_or_default())
    }

    fn consume(&mut self, count: usize) {
        let count = count.min(self.end - self.start);
        self.start += count;
        self.offset += count as u64;
        self.options.progress.bytes(count as u64);
    }
}

impl<R: Read> Read for Source<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(buf)?;
        self.consume(read);
        Ok(read)
    }
}

/// LZ4 as Linux reads it: after the magic number blocks of 8 MiB, each behind its length; no end but that of the file.
struct Lz4<'s, 'a, R> {
    source: &'s mut Source<'a, R>,
    block: Vec<u8>,
    at: usize,
}

impl<'s, 'a, R: Read> Lz4<'s, 'a, R> {
    const fn new(source: &'s mut Source<'a, R>) -> Self {
        Self { source, block: Vec::new(), at: 0 }
    }

    /// Unpacks the next block; false at the end, or where no block can begin.
    fn next_block(&mut self) -> io::Result<bool> {
        loop {
            let start = self.source.peek(4)?;
            if start == LZ4_LEGACY {
                self.source.consume(4);
                continue;
            }
            let Ok(len) = <[u8; 4]>::try_from(start) else { return Ok(false) };
            let len = usize::try_from(u32::from_le_bytes(len)).unwrap_or(usize::MAX);
            if len == 0 || len > LZ4_PACKED_LEN {
                return Ok(false);
            }
            self.source.consume(4);
            let mut packed = Vec::new();
            (&mut *self.source).take(len as u64).read_to_end(&mut packed)?;
            if packed.len() < len {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.block.resize(LZ4_BLOCK_LEN, 0);
            let unpacked = lz4_flex::block::decompress_into(&packed, &mut self.block)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("lz4: {error}")))?;
            self.block.truncate(unpacked);
            self.at = 0;
            return Ok(true);
        }
    }
}

impl<R: Read> Read for Lz4<'_, '_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.at >= self.block.len() {
            if !self.next_block()? {
                return Ok(0);
            }
        }
        let read = self.block.get(self.at..).unwrap_or_default().read(buf)?;
        self.at += read;
        Ok(read)
    }
}

#[cfg(test)]
mod tests;
