//! The bundle: which certificates an operator trusts to vouch for TPMs, and where he has them from. A directory of
//! certificates, with `provenance.toml` beside them if he likes, or one file.
//!
//! What is built from them is [`path`](super::path)'s; that a bundle changes, [`trust`](super::trust)'s.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use protocol::id;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{
    certificate::{Certificate, CertificateError, name_text},
    path::{EkPathCertificate, FileName},
};

/// One file of roots; the bundle of all vendors is a tenth of it.
const MAX_FILE_LEN: u64 = 4 * 1024 * 1024;
/// The file that says where the certificates are from.
pub const PROVENANCE_FILE: &str = "provenance.toml";
/// Bytes of one text in it.
const MAX_TEXT_LEN: usize = 1024;

/// Why roots could not be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each message says it")]
pub enum EkRootsError {
    #[error("cannot read {path}", path = path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{path} is larger than {MAX_FILE_LEN} bytes", path = path.display())]
    TooLarge { path: PathBuf },
    #[error("{path} holds no certificate", path = path.display())]
    NoCertificate { path: PathBuf },
    #[error("{path}: PEM that does not parse", path = path.display())]
    BadPem { path: PathBuf },
    // Not a `source`: the message has it, and who prints the chain would say it twice.
    #[error("{path}: certificate {number}: {problem}", path = path.display())]
    BadCertificate { path: PathBuf, number: usize, problem: CertificateError },
    #[error("{path}: {problem}", path = path.display())]
    BadProvenance { path: PathBuf, problem: String },
}

/// What the operator wrote down about a certificate: for people, but for `exceptions`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Provenance {
    /// Whose it is.
    pub vendor: Option<String>,
    /// Where it was had from: a URL or a document.
    pub source: Option<String>,
    /// When, `YYYY-MM-DD`.
    pub retrieved: Option<String>,
    /// Anything else.
    pub note: Option<String>,
    /// What is let pass for this certificate alone: `set-order`, a SET that is not in the order of DER.
    pub exceptions: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProvenanceFile {
    #[serde(default)]
    certificate: Vec<ProvenanceEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProvenanceEntry {
    sha256: String,
    vendor: Option<String>,
    source: Option<String>,
    retrieved: Option<String>,
    note: Option<String>,
    #[serde(default)]
    exceptions: Vec<String>,
}

/// One trusted certificate.
#[derive(Clone, Debug)]
pub(super) struct Anchor {
    pub(super) der: Vec<u8>,
    pub(super) file: FileName,
    pub(super) provenance: Option<Arc<Provenance>>,
}

/// A certificate of a bundle as a table shows it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct BundleCertificate {
    /// The certificate, where it is and where it is from.
    #[serde(flatten)]
    pub certificate: EkPathCertificate,
    /// What keeps it from being used, `set-order` or nothing: it is no DER and not excepted.
    pub refused: Option<String>,
}

/// The certificates an operator trusts to vouch for TPMs: roots and, if he likes, intermediates.
#[derive(Clone, Debug, Default)]
pub struct EkRoots {
    /// By subject, as DER.
    by_subject: HashMap<Vec<u8>, Vec<Anchor>>,
    count: usize,
    /// Certificates, by SHA-256, whose SETs need not be in order.
    set_order: HashSet<[u8; 32]>,
}

impl EkRoots {
    /// No roots: nothing validates.
    pub fn empty() -> Self {
        Self::default()
    }

    /// Loads a bundle: a directory as [`load_dir`](Self::load_dir) does, or one file of PEM or DER.
    ///
    /// # Errors
    /// [`EkRootsError`], naming the file.
    pub fn load(path: &Path) -> Result<Self, EkRootsError> {
        let metadata = fs::metadata(path).map_err(|source| EkRootsError::Io { path: path.to_owned(), source })?;
        if metadata.is_dir() {
            return Self::load_dir(path);
        }
        let mut roots = Self::empty();
        roots.load_file(path)?;
        Ok(roots)
    }

    /// Loads every file of a directory, PEM (any number of certificates) or DER (one). Hidden files and directories are
    /// left out; `provenance.toml` says where the certificates are from. Every certificate found is trusted as it is.
    ///
    /// # Errors
    /// [`EkRootsError`], naming the file: a root that was meant to be there and is not would only show at the node it
    /// was meant for.
    pub fn load_dir(path: &Path) -> Result<Self, EkRootsError> {
        let io_error = |source| EkRootsError::Io { path: path.to_owned(), source };
        let (mut files, mut provenance) = (Vec::new(), None);
        for entry in fs::read_dir(path).map_err(io_error)? {
            let entry = entry.map_err(io_error)?;
            if entry.file_name() == PROVENANCE_FILE {
                provenance = Some(entry.path());
            } else if !entry.file_name().as_encoded_bytes().starts_with(b".") {
                files.push(entry.path());
            }
        }
        files.sort();
        let mut roots = Self::empty();
        for file in files {
            roots.load_file(&file)?;
        }
        if let Some(file) = provenance {
            roots.load_provenance(&file)?;
        }
        Ok(roots)
    }

    fn load_file(&mut self, path: &Path) -> Result<(), EkRootsError> {
        // Follows links: certificate directories are full of them.
        let Some(bytes) = read(path)? else { return Ok(()) };
        let is_pem = bytes.windows(10).any(|window| window == b"-----BEGIN");
        let certificates = if is_pem {
            rustls_pemfile::certs(&mut bytes.as_slice())
                .map(|certificate| certificate.map(|certificate| certificate.to_vec()))
                .collect::<Result<Vec<_>, _>>()
                .map_err(|_| EkRootsError::BadPem { path: path.to_owned() })?
        } else {
            vec![bytes]
        };
        if certificates.is_empty() {
            return Err(EkRootsError::NoCertificate { path: path.to_owned() });
        }
        let name: FileName = path.file_name().map_or_else(|| "".into(), |name| name.to_string_lossy().into());
        for (at, certificate) in certificates.into_iter().enumerate() {
            self.insert(certificate, name.clone()).map_err(|problem| EkRootsError::BadCertificate {
                path: path.to_owned(),
                number: at + 1,
                problem,
            })?;
        }
        Ok(())
    }

    fn load_provenance(&mut self, path: &Path) -> Result<(), EkRootsError> {
        let bad = |problem: String| EkRootsError::BadProvenance { path: path.to_owned(), problem };
        let bytes = read(path)?.unwrap_or_default();
        let text = String::from_utf8(bytes).map_err(|_| bad("it is not UTF-8".into()))?;
        let file: ProvenanceFile =
            toml::from_str(&text).map_err(|error| bad(error.to_string().trim_end().to_owned()))?;
        let mut said = HashMap::new();
        for entry in file.certificate {
            let digest: [u8; 32] = id::hex_array(&entry.sha256)
                .ok_or_else(|| bad(format!("sha256 = {:?}: 64 hex digits are needed", shown(&entry.sha256))))?;
            let about = |problem: &str| bad(format!("certificate {}: {problem}", entry.sha256));
            let texts = [&entry.vendor, &entry.source, &entry.retrieved, &entry.note];
            if texts.into_iter().flatten().any(|text| text.len() > MAX_TEXT_LEN || text.chars().any(char::is_control)) {
                return Err(about("texts are of at most 1,024 bytes without control characters"));
            }
            if entry.retrieved.as_deref().is_some_and(|date| !is_date(date)) {
                return Err(about("retrieved is a date, YYYY-MM-DD"));
            }
            if let Some(exception) = entry.exceptions.iter().find(|exception| *exception != "set-order") {
                return Err(about(&format!("there is no exception {:?}, only \"set-order\"", shown(exception))));
            }
            if !entry.exceptions.is_empty() {
                let whose = entry.vendor.as_deref().unwrap_or("a vendor that is not named");
                tracing::warn!(sha256 = entry.sha256, vendor = whose, "EK bundle: SETs out of order are let pass");
                self.set_order.insert(digest);
            }
            let provenance = Provenance {
                vendor: entry.vendor,
                source: entry.source,
                retrieved: entry.retrieved,
                note: entry.note,
                exceptions: entry.exceptions,
            };
            if said.insert(digest, Arc::new(provenance)).is_some() {
                return Err(bad(format!("certificate {} is there twice", entry.sha256)));
            }
        }
        let mut left: HashSet<[u8; 32]> = said.keys().copied().collect();
        for anchor in self.by_subject.values_mut().flatten() {
            let digest: [u8; 32] = Sha256::digest(&anchor.der).into();
            left.remove(&digest);
            anchor.provenance = said.get(&digest).cloned();
        }
        match left.iter().min() {
            Some(unknown) => Err(bad(format!("no certificate of the bundle has sha256 {}", hex::encode(unknown)))),
            None => Ok(()),
        }
    }

    /// Trusts one certificate, given in DER; the same again changes nothing.
    ///
    /// # Errors
    /// [`CertificateError`].
    pub fn add(&mut self, der: Vec<u8>) -> Result<(), CertificateError> {
        self.insert(der, "given".into())
    }

    fn insert(&mut self, der: Vec<u8>, file: FileName) -> Result<(), CertificateError> {
        let subject = Certificate::parse(&der)?.subject.to_vec();
        let same_name = self.by_subject.entry(subject).or_default();
        if same_name.iter().all(|anchor| anchor.der != der) {
            same_name.push(Anchor { der, file, provenance: None });
            self.count += 1;
        }
        Ok(())
    }

    /// How many certificates are trusted.
    pub const fn count(&self) -> usize {
        self.count
    }

    /// Every certificate, by file and subject.
    pub fn certificates(&self) -> Vec<BundleCertificate> {
        let row = |anchor: &Anchor| {
            let certificate = Certificate::parse(&anchor.der).ok()?;
            let excepted = self.excepts_set_order(&Sha256::digest(&anchor.der).into());
            let refused = (certificate.has_disordered_set && !excepted).then(|| "set-order".to_owned());
            let file = anchor.file.clone();
            Some((file, name_text(certificate.subject), EkPathCertificate::of_anchor(anchor, &certificate), refused))
        };
        let mut rows: Vec<_> = self.by_subject.values().flatten().filter_map(row).collect();
        rows.sort_by(|a, b| (&a.0, &a.1, &a.2.sha256).cmp(&(&b.0, &b.1, &b.2.sha256)));
        rows.into_iter().map(|(_, _, certificate, refused)| BundleCertificate { certificate, refused }).collect()
    }

    pub(super) fn of_subject(&self, subject: &[u8]) -> &[Anchor] {
        self.by_subject.get(subject).map_or(&[], Vec::as_slice)
    }

    pub(super) fn excepts_set_order(&self, sha256: &[u8; 32]) -> bool {
        self.set_order.contains(sha256)
    }
}

/// A file's bytes; `None` for a directory.
fn read(path: &Path) -> Result<Option<Vec<u8>>, EkRootsError> {
    let io_error = |source| EkRootsError::Io { path: path.to_owned(), source };
    let metadata = fs::metadata(path).map_err(io_error)?;
    if metadata.is_dir() {
        return Ok(None);
    }
    if metadata.len() > MAX_FILE_LEN {
        return Err(EkRootsError::TooLarge { path: path.to_owned() });
    }
    fs::read(path).map(Some).map_err(io_error)
}

fn is_date(text: &str) -> bool {
    let mut parts = text.split('-');
    let mut number = |len: usize| -> Option<u16> {
        let part = parts.next().filter(|part| part.len() == len && part.bytes().all(|byte| byte.is_ascii_digit()))?;
        part.parse().ok()
    };
    let (Some(year), Some(month), Some(day)) = (number(4), number(2), number(2)) else { return false };
    let month = u8::try_from(month).ok().and_then(|month| time::Month::try_from(month).ok());
    let date =
        month.zip(u8::try_from(day).ok()).map(|(month, day)| time::Date::from_calendar_date(year.into(), month, day));
    parts.next().is_none() && date.is_some_and(|date| date.is_ok())
}

/// A text of the file's, cut so that an error stays readable.
fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}
