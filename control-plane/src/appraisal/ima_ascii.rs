//! The ASCII form of an IMA list: turned into the binary form, which everything else reads.
//!
//! A line is, with a space between each: PCR in decimal, template hash (SHA-1, hex), template name, and the fields: of a
//! digest its algorithm and hex, of a name the text, of anything else hex. The kernel puts `_` for spaces in names before
//! it hashes them, so the text is what was measured; a name with a line break in it cannot be read back. Whether a line's
//! template hash is that of its data is found by the replay. (Linux, ima_ascii_measurements_show, ima_template_lib.c.)

use protocol::limits;

use super::ima_log::template_fields;

/// What `ima` pads names to, so none is as long.
const LEGACY_NAME_LEN: usize = 256;

/// Why a text is no IMA list.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("entry {entry} of the ASCII IMA list: {problem}")]
pub struct ImaAsciiError {
    /// The entry, from 0.
    pub entry: u64,
    /// Where its line begins, in bytes.
    pub offset: usize,
    /// What is wrong with it.
    pub problem: ImaAsciiProblem,
}

/// What is wrong with a line.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each message says it")]
pub enum ImaAsciiProblem {
    #[error("the list is longer than {max} bytes", max = limits::MAX_IMA_LOG_LEN)]
    TooLong,
    #[error("the line does not begin with the number of a PCR")]
    BadPcr,
    #[error("the template hash is not 40 hex digits")]
    BadTemplateHash,
    #[error("the template is neither known nor described by known fields")]
    UnknownTemplate,
    #[error("the digest is not an algorithm's name and hex digits")]
    BadDigest,
    #[error("the name is missing, or longer than the template allows")]
    BadName,
    #[error("a field is not hex digits")]
    BadHex,
    #[error("a field is not a number")]
    BadNumber,
    #[error("the line has more or fewer fields than the template")]
    WrongFields,
    #[error("the entry is longer than {max} bytes", max = limits::MAX_IMA_ENTRY_LEN)]
    EntryTooLong,
}

use ImaAsciiProblem as Problem;

/// Whether bytes are an ASCII list, if they are an IMA list at all: a binary one begins with a PCR as a u32, whose upper
/// bytes are zero.
pub fn is_ascii_list(bytes: &[u8]) -> bool {
    bytes.first_chunk::<4>().is_some_and(|head| head.iter().all(|byte| matches!(byte, 0x20..=0x7e)))
}

/// The list in its binary form. An empty last line is none.
///
/// # Errors
/// [`ImaAsciiError`], by the first line that cannot be read.
pub fn to_binary(text: &[u8]) -> Result<Vec<u8>, ImaAsciiError> {
    if text.len() > limits::MAX_IMA_LOG_LEN {
        return Err(ImaAsciiError { entry: 0, offset: 0, problem: Problem::TooLong });
    }
    let mut list = Vec::with_capacity(text.len());
    let (mut rest, mut offset, mut entry) = (text, 0usize, 0u64);
    while !rest.is_empty() {
        let end = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
        let line = rest.get(..end).unwrap_or_default();
        push_entry(&mut list, line).map_err(|problem| ImaAsciiError { entry, offset, problem })?;
        let used = (end + 1).min(rest.len());
        rest = rest.get(used..).unwrap_or_default();
        offset += used;
        entry += 1;
    }
    Ok(list)
}

fn push_entry(list: &mut Vec<u8>, line: &[u8]) -> Result<(), Problem> {
    // PCRs of one digit are printed with a space before them.
    let line = line.strip_prefix(b" ").unwrap_or(line);
    let mut words = line.split(|byte| *byte == b' ');
    let pcr = words.next().and_then(number).filter(|pcr| *pcr < 32).ok_or(Problem::BadPcr)?;
    let mut template_hash = [0; 20];
    let hash = words.next().unwrap_or_default();
    hex::decode_to_slice(hash, &mut template_hash).map_err(|_| Problem::BadTemplateHash)?;
    let template = words.next().unwrap_or_default();
    let data = if template == b"ima" { legacy(&mut words)? } else { fields(template, &mut words)? };
    if words.next().is_some() {
        return Err(Problem::WrongFields);
    }
    if data.len() > limits::MAX_IMA_ENTRY_LEN {
        return Err(Problem::EntryTooLong);
    }
    list.extend_from_slice(&pcr.to_le_bytes());
    list.extend_from_slice(&template_hash);
    push_sized(list, template);
    if template == b"ima" {
        list.extend_from_slice(&data);
    } else {
        push_sized(list, &data);
    }
    Ok(())
}

/// Digest and name of the oldest template.
fn legacy<'l>(words: &mut impl Iterator<Item = &'l [u8]>) -> Result<Vec<u8>, Problem> {
    let mut data = vec![0; 20];
    let digest = words.next().ok_or(Problem::WrongFields)?;
    hex::decode_to_slice(digest, &mut data).map_err(|_| Problem::BadDigest)?;
    let name = words.next().ok_or(Problem::WrongFields)?;
    if name.is_empty() || name.len() >= LEGACY_NAME_LEN || name.contains(&0) {
        return Err(Problem::BadName);
    }
    push_sized(&mut data, name);
    Ok(data)
}

fn fields<'l>(template: &[u8], words: &mut impl Iterator<Item = &'l [u8]>) -> Result<Vec<u8>, Problem> {
    let ids = template_fields(template).ok_or(Problem::UnknownTemplate)?;
    let count = ids.len();
    let mut data = Vec::new();
    for (at, id) in ids.into_iter().enumerate() {
        let word = match words.next() {
            Some(word) => word,
            // An empty last field is a space at the end of the line, which is easily lost.
            None if at + 1 == count && at >= 2 => &[],
            None => return Err(Problem::WrongFields),
        };
        match id {
            "d-ng" | "d-ngv2" => push_sized(&mut data, &digest(word)?),
            "d-modsig" if word.is_empty() => push_sized(&mut data, &[]),
            "d-modsig" => push_sized(&mut data, &digest(word)?),
            "n-ng" | "xattrnames" => {
                if word.contains(&0) || (word.is_empty() && id == "n-ng") {
                    return Err(Problem::BadName);
                }
                push_sized(&mut data, &[word, &[0]].concat());
            }
            "iuid" | "igid" => push_sized(&mut data, &number(word).ok_or(Problem::BadNumber)?.to_le_bytes()),
            "imode" => {
                let mode = number(word).and_then(|mode| u16::try_from(mode).ok()).ok_or(Problem::BadNumber)?;
                push_sized(&mut data, &mode.to_le_bytes());
            }
            _ => push_sized(&mut data, &hex::decode(word).map_err(|_| Problem::BadHex)?),
        }
    }
    Ok(data)
}

/// `sha256:…`, `ima:sha256:…`: the name with its colon, a zero byte, the digest.
fn digest(word: &[u8]) -> Result<Vec<u8>, Problem> {
    let colon = word.iter().rposition(|byte| *byte == b':').filter(|at| *at > 0).ok_or(Problem::BadDigest)?;
    let (name, digits) = word.split_at_checked(colon + 1).ok_or(Problem::BadDigest)?;
    if name.contains(&0) {
        return Err(Problem::BadDigest);
    }
    let digest = hex::decode(digits).map_err(|_| Problem::BadDigest)?;
    Ok([name, &[0], &digest].concat())
}

fn number(word: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(word).ok()?;
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

fn push_sized(data: &mut Vec<u8>, value: &[u8]) {
    // A line is no longer than a list.
    data.extend_from_slice(&u32::try_from(value.len()).unwrap_or(u32::MAX).to_le_bytes());
    data.extend_from_slice(value);
}

#[cfg(test)]
mod tests {
    use protocol::tpm::alg::{Digest, HashAlg};

    use super::*;
    use crate::appraisal::{
        ima_log::{ImaEntry, ImaError, ImaReplay, ImaStart},
        test_vectors,
    };

    /// Reads a binary list to its end, checks every template hash, and shows the entries.
    fn walk(list: &[u8], seen: impl FnMut(&ImaEntry<'_>)) -> Result<u64, ImaError> {
        let mut replay = ImaReplay::new(&ImaStart::beginning(), [(HashAlg::Sha1, Digest::EMPTY)]);
        replay.push_with(list, seen)?;
        Ok(replay.entries())
    }

    #[test]
    fn the_ascii_list_of_the_captured_vm_is_its_binary_list() {
        let Some(folder) = test_vectors::folder("vm-ovmf") else { return };
        let ascii = test_vectors::read(&folder, "ima_ascii_runtime_measurements");
        assert!(is_ascii_list(&ascii));
        let binary = test_vectors::read(&folder, "ima_binary_runtime_measurements");
        assert!(!is_ascii_list(&binary));
        assert_eq!(to_binary(&ascii).unwrap(), binary);
    }

    #[test]
    fn every_line_of_the_outside_lists_hashes_to_its_template_hash() {
        let Some(folder) = test_vectors::folder("ima") else { return };
        for (name, entries) in [("ubuntu1604-ima-ng-sha1.ascii", 826), ("ima-sig-4.ascii", 4), ("ima-buf-11.ascii", 11)]
        {
            let list = to_binary(&test_vectors::read(&folder, name)).unwrap_or_else(|error| panic!("{name}: {error}"));
            let mut buffers = 0;
            let walked = walk(&list, |entry| {
                let measured = entry.measurement().unwrap();
                if let Some(buffer) = measured.buffer {
                    assert_eq!(measured.alg.unwrap().digest(&[buffer]).as_bytes(), measured.digest);
                    buffers += 1;
                }
            });
            assert_eq!(walked, Ok(entries), "{name}");
            assert_eq!(buffers, if name.starts_with("ima-buf") { 11 } else { 0 });
        }
    }

    const NG: &str =
        "10 0000000000000000000000000000000000000001 ima-ng sha1:00112233445566778899aabbccddeeff00112233 /a_b";

    #[test]
    fn every_template_is_read_in_its_own_form() {
        let hash = "0000000000000000000000000000000000000001";
        let digest = "00112233445566778899aabbccddeeff00112233";
        for (line, expected) in [
            (format!("10 {hash} ima {digest} /a"), Some((&b"/a"[..], None))),
            (format!(" 9 {hash} ima-ng sha1:{digest} /a\\"), Some((b"/a\\", None))),
            (format!("10 {hash} ima-ngv2 verity:sha1:{digest} /a"), Some((b"/a", None))),
            (format!("10 {hash} ima-sig sha1:{digest} /a 0302"), Some((b"/a", Some(&[3, 2][..])))),
            (format!("10 {hash} ima-sig sha1:{digest} /a "), Some((b"/a", None))),
            (format!("10 {hash} ima-sig sha1:{digest} /a"), Some((b"/a", None))),
            (format!("10 {hash} ima-sigv2 ima:sha1:{digest} /a 06"), Some((b"/a", Some(&[6])))),
            (format!("10 {hash} ima-modsig sha1:{digest} /a   "), Some((b"/a", None))),
            (format!("10 {hash} ima-modsig sha1:{digest} /a 03 sha1:{digest} 30"), Some((b"/a", Some(&[3])))),
            (format!("10 {hash} d-ng|n-ng|imode sha1:{digest} /a 33261"), Some((b"/a", None))),
            (
                format!("10 {hash} evm-sig sha1:{digest} /a 05 security.ima|security.evm 0400 01020304 0 0 33261"),
                Some((b"/a", None)),
            ),
        ] {
            let list = to_binary(line.as_bytes()).unwrap_or_else(|error| panic!("{line}: {error}"));
            let mut replay = ImaReplay::new(&ImaStart::beginning(), [(HashAlg::Sha256, Digest::EMPTY)]);
            let mut found = None;
            replay
                .push_with(&list, |entry| {
                    found = entry
                        .measurement()
                        .ok()
                        .map(|found| (found.path.to_vec(), found.signature.map(<[u8]>::to_vec)));
                })
                .unwrap();
            let expected = expected.map(|(path, sig): (&[u8], Option<&[u8]>)| (path.to_vec(), sig.map(<[u8]>::to_vec)));
            assert_eq!(found, expected, "{line}");
        }
    }

    #[test]
    fn a_line_with_one_thing_wrong_is_refused_with_its_place() {
        let broken = |from: &str, to: &str| NG.replace(from, to);
        for (line, expected) in [
            (String::new(), Problem::BadPcr),
            (broken("10 ", "x "), Problem::BadPcr),
            (broken("10 ", "32 "), Problem::BadPcr),
            (broken("10 ", "-1 "), Problem::BadPcr),
            (broken("10 ", "10  "), Problem::BadTemplateHash),
            (broken("01 ima", " ima"), Problem::BadTemplateHash),
            (broken("01 ima", "0g ima"), Problem::BadTemplateHash),
            (broken("ima-ng", "ima-xx"), Problem::UnknownTemplate),
            (broken("ima-ng", "d-ng|zz"), Problem::UnknownTemplate),
            (broken("sha1:", ""), Problem::BadDigest),
            (broken("sha1:", ":"), Problem::BadDigest),
            (broken("33 /", "3 /"), Problem::BadDigest),
            (broken("sha1:0", "sha1:g"), Problem::BadDigest),
            (broken("/a_b", ""), Problem::BadName),
            (broken(" /a_b", ""), Problem::WrongFields),
            (broken("/a_b", "/a b"), Problem::WrongFields),
            (broken("ima-ng", "ima-sig") + " 030", Problem::BadHex),
            (broken("ima-ng", "d-ng|n-ng|imode") + " 65536", Problem::BadNumber),
            (broken("ima-ng sha1:", "ima ").replace("/a", &"a".repeat(256)), Problem::BadName),
            (broken("ima-ng sha1:00", "ima "), Problem::BadDigest),
            (broken("/a", &"a".repeat(limits::MAX_IMA_ENTRY_LEN)), Problem::EntryTooLong),
        ] {
            let text = format!("{NG}\n{line}\n");
            let error = ImaAsciiError { entry: 1, offset: NG.len() + 1, problem: expected };
            assert_eq!(to_binary(text.as_bytes()).unwrap_err(), error, "{line}");
        }
        let long = vec![b'1'; limits::MAX_IMA_LOG_LEN + 1];
        assert_eq!(to_binary(&long).unwrap_err().problem, Problem::TooLong);
    }

    #[test]
    fn no_prefix_of_a_list_is_read_as_something_else() {
        let whole = format!("{NG}\n{NG}\n");
        let binary = to_binary(whole.as_bytes()).unwrap();
        for end in 0..whole.len() {
            match to_binary(&whole.as_bytes()[..end]) {
                // A name that is cut is another name; the replay tells.
                Ok(list) => assert!(list.len() <= binary.len()),
                Err(error) => assert_eq!(error.offset, if end <= NG.len() { 0 } else { NG.len() + 1 }),
            }
        }
        assert_eq!(to_binary(b"").unwrap(), b"");
    }
}
