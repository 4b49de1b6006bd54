//! UEFI structures that boot-log events carry: variables and the signature lists in them. Decoders over slices, total;
//! whether the bytes are believed is decided before.
//!
//! UEFI Specification 2.10, "Signature Database"; TCG PC Client Platform Firmware Profile, UEFI_VARIABLE_DATA.

use protocol::codec::{CodecError, Reader};
use ring::digest;

/// A GUID as it stands in memory: the first three fields little-endian.
pub type Guid = [u8; 16];

/// EFI_GLOBAL_VARIABLE: SecureBoot, PK, KEK.
pub const GLOBAL_VARIABLE: Guid = guid(0x8be4_df61, 0x93ca, 0x11d2, [0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c]);
/// EFI_IMAGE_SECURITY_DATABASE_GUID: db, dbx.
pub const IMAGE_SECURITY_DATABASE: Guid =
    guid(0xd719_b2cb, 0x3d3a, 0x4596, [0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65, 0x6f]);
const CERT_X509: Guid = guid(0xa5c0_59a1, 0x94e4, 0x4aa7, [0x87, 0xb5, 0xab, 0x15, 0x5c, 0x2b, 0xf0, 0x72]);
const CERT_SHA256: Guid = guid(0xc1c4_1626, 0x504c, 0x4092, [0xac, 0xa9, 0x41, 0xf9, 0x36, 0x93, 0x43, 0x28]);
const CERT_X509_SHA256: Guid = guid(0x3bd2_a492, 0x96c0, 0x4079, [0xb4, 0x20, 0xfc, 0xf9, 0x8e, 0xf1, 0x03, 0xed]);

/// A variable's name, in UTF-16 units.
const MAX_NAME_LEN: usize = 512;

const fn guid(a: u32, b: u16, c: u16, d: [u8; 8]) -> Guid {
    let ([a0, a1, a2, a3], [b0, b1], [c0, c1]) = (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes());
    let [d0, d1, d2, d3, d4, d5, d6, d7] = d;
    [a0, a1, a2, a3, b0, b1, c0, c1, d0, d1, d2, d3, d4, d5, d6, d7]
}

/// UEFI_VARIABLE_DATA.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Variable<'a> {
    /// VariableName, its vendor.
    pub vendor: Guid,
    /// UnicodeName.
    pub name: String,
    /// VariableData.
    pub data: &'a [u8],
}

impl<'a> Variable<'a> {
    /// Decodes a whole UEFI_VARIABLE_DATA; every byte must be used.
    ///
    /// # Errors
    /// [`CodecError`]; a name of more than 512 units or that is no UTF-16 is one.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, CodecError> {
        let mut reader = Reader::new(bytes);
        let vendor = reader.array()?;
        let name_len = read_u64(&mut reader)?;
        let data_len = read_u64(&mut reader)?;
        if name_len > MAX_NAME_LEN {
            return Err(CodecError::TooLong);
        }
        let name = utf16(reader.take(2 * name_len)?).ok_or(CodecError::BadValue)?;
        let data = reader.take(data_len)?;
        reader.finish()?;
        Ok(Self { vendor, name, data })
    }
}

fn read_u64(reader: &mut Reader<'_>) -> Result<usize, CodecError> {
    usize::try_from(u64::from_le_bytes(reader.array()?)).map_err(|_| CodecError::TooLong)
}

/// UTF-16LE text; `None` for an odd number of bytes or unpaired surrogates.
pub fn utf16(bytes: &[u8]) -> Option<String> {
    let (units, []) = bytes.as_chunks::<2>() else { return None };
    char::decode_utf16(units.iter().map(|unit| u16::from_le_bytes(*unit))).collect::<Result<_, _>>().ok()
}

/// Text as UTF-16LE.
pub fn to_utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

/// One EFI_SIGNATURE_DATA of a list.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Signature<'a> {
    kind: Guid,
    /// SignatureData, without its owner.
    pub data: &'a [u8],
}

impl<'a> Signature<'a> {
    /// What it is named by in policies: a hash by itself, a certificate and anything else by SHA-256 of its bytes.
    pub fn id(&self) -> [u8; 32] {
        match (self.kind, self.data.first_chunk::<32>()) {
            (CERT_SHA256 | CERT_X509_SHA256, Some(hash)) => *hash,
            _ => sha256(self.data),
        }
    }

    /// Its certificate, DER, if it is one.
    pub fn certificate(&self) -> Option<&'a [u8]> {
        (self.kind == CERT_X509).then_some(self.data)
    }
}

/// SHA-256, the name of a certificate.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    hash
}

/// Decodes a row of EFI_SIGNATURE_LISTs: the contents of PK, KEK, db and dbx. No bytes are an empty variable.
///
/// # Errors
/// [`CodecError`] for sizes that do not add up.
pub fn signature_lists(bytes: &[u8]) -> Result<Vec<Signature<'_>>, CodecError> {
    let mut reader = Reader::new(bytes);
    let mut signatures = Vec::new();
    while reader.remaining() > 0 {
        let kind = reader.array()?;
        let mut size = || -> Result<usize, CodecError> {
            usize::try_from(u32::from_le_bytes(reader.array()?)).map_err(|_| CodecError::TooLong)
        };
        let (list_len, header_len, signature_len) = (size()?, size()?, size()?);
        let body_len = list_len.checked_sub(28).ok_or(CodecError::BadValue)?;
        let (_, body) = reader.take(body_len)?.split_at_checked(header_len).ok_or(CodecError::BadValue)?;
        // An owner's GUID stands before each.
        if signature_len <= 16 || body.len() % signature_len != 0 {
            return Err(CodecError::BadValue);
        }
        signatures.extend(
            body.chunks_exact(signature_len).filter_map(|entry| Some(Signature { kind, data: entry.get(16..)? })),
        );
    }
    Ok(signatures)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variable(name: &str, data: &[u8]) -> Vec<u8> {
        let name = to_utf16(name);
        let len = |len: usize| u64::try_from(len).unwrap().to_le_bytes();
        [&GLOBAL_VARIABLE[..], &len(name.len() / 2), &len(data.len()), &name, data].concat()
    }

    fn list(kind: Guid, entries: &[&[u8]]) -> Vec<u8> {
        let entry_len = 16 + entries[0].len();
        let len = |len: usize| u32::try_from(len).unwrap().to_le_bytes();
        let mut bytes = [&kind[..], &len(28 + entries.len() * entry_len), &len(0), &len(entry_len)].concat();
        entries.iter().for_each(|entry| bytes.extend([&[7; 16], *entry].concat()));
        bytes
    }

    #[test]
    fn a_variable_is_read_whole_or_refused() {
        let bytes = variable("SecureBoot", &[1]);
        let read = Variable::decode(&bytes).unwrap();
        assert_eq!((read.vendor, read.name.as_str(), read.data), (GLOBAL_VARIABLE, "SecureBoot", &[1][..]));
        for end in 0..bytes.len() {
            assert!(Variable::decode(&bytes[..end]).is_err(), "{end}");
        }
        assert!(Variable::decode(&[&bytes[..], &[0]].concat()).is_err());
        let mut huge = bytes.clone();
        huge[16..24].fill(0xff);
        assert_eq!(Variable::decode(&huge), Err(CodecError::TooLong));
        let mut surrogate = bytes;
        surrogate[32..34].copy_from_slice(&[0, 0xd8]);
        assert_eq!(Variable::decode(&surrogate), Err(CodecError::BadValue));
    }

    #[test]
    fn signatures_are_named_by_their_hash_or_are_one() {
        let bytes = [list(CERT_X509, &[b"certificate"]), list(CERT_SHA256, &[&[1; 32], &[2; 32]])].concat();
        let read = signature_lists(&bytes).unwrap();
        let ids: Vec<_> = read.iter().map(Signature::id).collect();
        assert_eq!(ids, [sha256(b"certificate"), [1; 32], [2; 32]]);
        assert_eq!((read[0].certificate(), read[1].certificate()), (Some(&b"certificate"[..]), None));
        assert!(signature_lists(&[]).unwrap().is_empty());
        let first = list(CERT_X509, &[b"certificate"]).len();
        for end in (0..bytes.len()).filter(|end| ![0, first].contains(end)) {
            assert!(signature_lists(&bytes[..end]).is_err(), "{end}");
        }
        for (at, value) in [(16, 27), (20, 0xff), (24, 16), (24, 0), (24, 5)] {
            let mut broken = bytes.clone();
            broken[at] = value;
            assert!(signature_lists(&broken).is_err(), "{at}: {value}");
        }
    }

    #[test]
    fn guids_are_as_they_stand_in_memory() {
        assert_eq!(GLOBAL_VARIABLE[..8], [0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11]);
    }
}
