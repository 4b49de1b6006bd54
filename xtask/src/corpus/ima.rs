//! IMA lists to be, with every field open (Linux, Documentation/security/IMA-templates).

use anyhow::Result;
use protocol::tpm::alg::{Digest, HashAlg};

use super::tpm::{Key, Parts, kernel_key_id};
use super::x509::Sign;

/// An entry to be.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) pcr: u32,
    pub(super) template: Vec<u8>,
    pub(super) data: Vec<u8>,
    /// The kernel found the file changing: its PCR is extended with ones.
    pub(super) is_violation: bool,
}

fn sized(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_le_bytes()[..], bytes].concat()
}

/// The digest field of `ima-ng` and what is like it.
pub(super) fn digest_field(digest: &[u8]) -> Vec<u8> {
    let alg = HashAlg::ALL.into_iter().find(|alg| alg.digest_len() == digest.len());
    [alg.map_or("sha256", HashAlg::name).as_bytes(), b":\0", digest].concat()
}

impl Entry {
    pub(super) fn new(template: &str, fields: &[Vec<u8>]) -> Self {
        let data = fields.iter().flat_map(|field| sized(field)).collect();
        Self { pcr: 10, template: template.as_bytes().to_vec(), data, is_violation: false }
    }

    /// An `ima-ng` entry of a file.
    pub(super) fn file(path: &str, digest: &[u8]) -> Self {
        Self::new("ima-ng", &[digest_field(digest), [path.as_bytes(), &[0]].concat()])
    }

    /// An `ima-sig` entry of a file.
    pub(super) fn signed(path: &str, digest: &[u8], signature: &[u8]) -> Self {
        Self::new("ima-sig", &[digest_field(digest), [path.as_bytes(), &[0]].concat(), signature.to_vec()])
    }

    /// An `ima-buf` entry.
    pub(super) fn buffer(name: &str, buffer: &[u8]) -> Self {
        let digest = HashAlg::Sha256.digest(&[buffer]);
        Self::new("ima-buf", &[digest_field(&digest), [name.as_bytes(), &[0]].concat(), buffer.to_vec()])
    }

    pub(super) fn violation(path: &str) -> Self {
        Self { is_violation: true, ..Self::file(path, &[0; 20]) }
    }

    /// Its fields in the list.
    pub(super) fn parts(&self) -> Parts {
        let hash = if self.is_violation { vec![0; 20] } else { HashAlg::Sha1.digest(&[&self.data]).to_vec() };
        vec![
            ("pcr", self.pcr.to_le_bytes().to_vec()),
            ("template hash", hash),
            ("template name length", (self.template.len() as u32).to_le_bytes().to_vec()),
            ("template name", self.template.clone()),
            ("template data length", (self.data.len() as u32).to_le_bytes().to_vec()),
            ("template data", self.data.clone()),
        ]
    }

    /// Its bytes, with fields replaced.
    pub(super) fn with(&self, replaced: &[(&str, Vec<u8>)]) -> Vec<u8> {
        let value = |(name, bytes): (&'static str, Vec<u8>)| {
            replaced.iter().find(|(of, _)| *of == name).map_or(bytes, |(_, bytes)| bytes.clone())
        };
        self.parts().into_iter().flat_map(value).collect()
    }
}

/// A list's bytes.
pub(super) fn encode(entries: &[Entry]) -> Vec<u8> {
    entries.iter().flat_map(|entry| entry.with(&[])).collect()
}

/// The list as ascii_runtime_measurements shows it; `ima-ng` entries only.
pub(super) fn ascii(entries: &[(String, Vec<u8>)]) -> String {
    let line = |(path, digest): &(String, Vec<u8>)| {
        let entry = Entry::file(path, digest);
        let hash = HashAlg::Sha1.digest(&[&entry.data]);
        format!("10 {hash} ima-ng sha256:{} {path}\n", hex::encode(digest))
    };
    entries.iter().map(line).collect()
}

/// PCR 10 of a TPM that was extended with all this.
pub(super) fn replay(entries: &[Entry], bank: HashAlg) -> Digest {
    entries.iter().filter(|entry| entry.pcr == 10).fold(Digest::zero(bank), |pcr, entry| {
        if entry.is_violation {
            bank.digest(&[&pcr, &vec![0xff; bank.digest_len()]])
        } else {
            bank.digest(&[&pcr, &bank.digest(&[&entry.data])])
        }
    })
}

/// The `security.ima` attribute: a signature of version 2 over a file's SHA-256.
pub(super) fn attribute(key: &Key, digest: &[u8]) -> Result<Vec<u8>> {
    let Key::P256(signer) = key else { anyhow::bail!("a P-256 key signs files here") };
    use p256::ecdsa::signature::hazmat::PrehashSigner as _;
    let signature: p256::ecdsa::Signature = signer.sign_prehash(digest)?;
    let der = signature.to_der();
    let der = der.as_bytes();
    // 3: a signature; version 2; 4: SHA-256.
    let head = [&[3, 2, 4][..], &kernel_key_id(key), &(der.len() as u16).to_be_bytes()].concat();
    Ok([head.as_slice(), der].concat())
}

/// A certificate of a key, for a keyring.
pub(super) fn certificate(name: &str, key: &Key) -> Result<Vec<u8>> {
    let mut certificate = super::x509::Certificate::ek("corpus file signing CA", key);
    certificate.sign = Sign::EcdsaSha256;
    certificate.subject = super::x509::name(name);
    certificate.extensions.clear();
    certificate.set_basic_constraints(false, None);
    certificate.sign(key)
}
