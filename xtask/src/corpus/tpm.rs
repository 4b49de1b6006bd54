//! TPM structures with every field open, so that each can be broken alone; and the keys that sign them.
//!
//! TPM 2.0 Part 2: TPMS_ATTEST, TPMT_PUBLIC, TPMT_SIGNATURE.

use anyhow::{Context as _, Result};
use p256::ecdsa::signature::hazmat::PrehashSigner as _;
use protocol::tpm::alg::HashAlg;
use rand_core::OsRng;
use rsa::traits::PublicKeyParts as _;
use rsa::{Pkcs1v15Sign, Pss, RsaPrivateKey};

/// TPM_ALG_ID of the schemes.
pub(super) const RSASSA: u16 = 0x0014;
pub(super) const RSAPSS: u16 = 0x0016;
pub(super) const ECDSA: u16 = 0x0018;
pub(super) const NULL: u16 = 0x0010;
/// TPM_ALG_RSA and TPM_ALG_ECC, as types of a key.
pub(super) const RSA: u16 = 0x0001;
pub(super) const ECC: u16 = 0x0023;
/// TPM_RH_ENDORSEMENT.
pub(super) const ENDORSEMENT: u32 = 0x4000_000b;
/// The attributes of an attestation key: fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA, restricted,
/// sign.
pub(super) const AK_ATTRIBUTES: u32 = 0x0005_0472;

/// A structure as its fields in order: names and bytes.
pub(super) type Parts = Vec<(&'static str, Vec<u8>)>;

/// The structure's bytes.
pub(super) fn join(parts: &Parts) -> Vec<u8> {
    parts.iter().flat_map(|(_, bytes)| bytes.iter().copied()).collect()
}

/// The structure cut within each of its fields (before it, where it is one byte): the field's name and what is left.
pub(super) fn cuts(parts: &Parts) -> Vec<(&'static str, Vec<u8>)> {
    let whole = join(parts);
    let mut start = 0;
    let mut cuts = Vec::new();
    for (name, bytes) in parts {
        if !bytes.is_empty() {
            cuts.push((*name, whole.iter().copied().take(start + bytes.len() / 2).collect()));
        }
        start += bytes.len();
    }
    cuts
}

fn u16be(value: usize) -> Vec<u8> {
    (value as u16).to_be_bytes().to_vec()
}

/// A TPM2B.
pub(super) fn tpm2b(bytes: &[u8]) -> Vec<u8> {
    [u16be(bytes.len()), bytes.to_vec()].concat()
}

/// TPMS_ATTEST.
#[derive(Clone, Debug)]
pub(super) struct Attest {
    pub(super) magic: u32,
    pub(super) kind: u16,
    pub(super) signer: Vec<u8>,
    pub(super) extra: Vec<u8>,
    pub(super) clock: u64,
    pub(super) reset_count: u32,
    pub(super) restart_count: u32,
    pub(super) safe: u8,
    pub(super) firmware: u64,
    /// Banks and their bits.
    pub(super) selection: Vec<(u16, Vec<u8>)>,
    pub(super) digest: Vec<u8>,
}

impl Attest {
    pub(super) fn parts(&self) -> Parts {
        let mut parts = vec![
            ("magic", self.magic.to_be_bytes().to_vec()),
            ("type", self.kind.to_be_bytes().to_vec()),
            ("qualifiedSigner.size", u16be(self.signer.len())),
            ("qualifiedSigner", self.signer.clone()),
            ("extraData.size", u16be(self.extra.len())),
            ("extraData", self.extra.clone()),
            ("clock", self.clock.to_be_bytes().to_vec()),
            ("resetCount", self.reset_count.to_be_bytes().to_vec()),
            ("restartCount", self.restart_count.to_be_bytes().to_vec()),
            ("safe", vec![self.safe]),
            ("firmwareVersion", self.firmware.to_be_bytes().to_vec()),
            ("pcrSelect.count", (self.selection.len() as u32).to_be_bytes().to_vec()),
        ];
        for (bank, bits) in &self.selection {
            parts.push(("pcrSelect.hash", bank.to_be_bytes().to_vec()));
            parts.push(("pcrSelect.sizeofSelect", vec![bits.len() as u8]));
            parts.push(("pcrSelect.pcrSelect", bits.clone()));
        }
        parts.push(("pcrDigest.size", u16be(self.digest.len())));
        parts.push(("pcrDigest", self.digest.clone()));
        parts
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        join(&self.parts())
    }
}

/// TPMT_PUBLIC.
#[derive(Clone, Debug)]
pub(super) struct Area {
    pub(super) kind: u16,
    pub(super) name_alg: u16,
    pub(super) attributes: u32,
    pub(super) policy: Vec<u8>,
    pub(super) symmetric: Vec<u8>,
    pub(super) scheme: Vec<u8>,
    /// What follows the scheme, up to the key: curve and KDF; or bits and exponent.
    pub(super) details: Parts,
    /// The key: x and y; or the modulus.
    pub(super) unique: Vec<(&'static str, Vec<u8>)>,
}

impl Area {
    pub(super) fn parts(&self) -> Parts {
        let mut parts = vec![
            ("type", self.kind.to_be_bytes().to_vec()),
            ("nameAlg", self.name_alg.to_be_bytes().to_vec()),
            ("objectAttributes", self.attributes.to_be_bytes().to_vec()),
            ("authPolicy.size", u16be(self.policy.len())),
            ("authPolicy", self.policy.clone()),
            ("symmetric", self.symmetric.clone()),
            ("scheme", self.scheme.clone()),
        ];
        parts.extend(self.details.iter().cloned());
        for (name, number) in &self.unique {
            parts.push(("unique.size", u16be(number.len())));
            parts.push((name, number.clone()));
        }
        parts
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        join(&self.parts())
    }

    /// TPM2B_PUBLIC, as tools write it.
    pub(super) fn tpm2b(&self) -> Vec<u8> {
        tpm2b(&self.encode())
    }

    /// Its Name; empty for a nameAlg that is none.
    pub(super) fn name(&self) -> Vec<u8> {
        name_over(self.name_alg, &[&self.encode()])
    }

    /// Its Qualified Name as a primary key of `hierarchy`.
    pub(super) fn qualified_name(&self, hierarchy: u32) -> Vec<u8> {
        name_over(self.name_alg, &[&hierarchy.to_be_bytes(), &self.name()])
    }
}

/// A Name over these bytes.
pub(super) fn name_over(alg: u16, parts: &[&[u8]]) -> Vec<u8> {
    let Some(hash) = HashAlg::from_id(alg) else { return Vec::new() };
    [&alg.to_be_bytes()[..], &hash.digest(parts)].concat()
}

/// How something is signed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scheme {
    pub(super) alg: u16,
    pub(super) hash: HashAlg,
    /// Of RSAPSS, in bytes; `None` for the longest that fits, as TPMs make it.
    pub(super) salt: Option<usize>,
}

impl Scheme {
    pub(super) const fn new(alg: u16, hash: HashAlg) -> Self {
        Self { alg, hash, salt: None }
    }

    /// As it stands in a public area.
    pub(super) fn bytes(self) -> Vec<u8> {
        [self.alg.to_be_bytes(), self.hash.id().to_be_bytes()].concat()
    }
}

/// TPMT_SIGNATURE.
#[derive(Clone, Debug)]
pub(super) struct Signature {
    pub(super) alg: u16,
    pub(super) hash: u16,
    /// r and s; or the one RSA signature.
    pub(super) numbers: Vec<(&'static str, Vec<u8>)>,
}

impl Signature {
    pub(super) fn parts(&self) -> Parts {
        let mut parts = vec![("sigAlg", self.alg.to_be_bytes().to_vec()), ("hash", self.hash.to_be_bytes().to_vec())];
        for (name, number) in &self.numbers {
            parts.push(("signature.size", u16be(number.len())));
            parts.push((name, number.clone()));
        }
        parts
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        join(&self.parts())
    }
}

/// A key that signs.
#[derive(Clone, Debug)]
pub(super) enum Key {
    P256(p256::ecdsa::SigningKey),
    P384(p384::ecdsa::SigningKey),
    Rsa(Box<RsaPrivateKey>),
}

/// DigestInfo before a SHA digest (RFC 8017 §9.2).
fn digest_info(hash: HashAlg) -> Vec<u8> {
    let (arcs, len): (&[u8], u8) = match hash {
        HashAlg::Sha1 => (&[0x2b, 0x0e, 0x03, 0x02, 0x1a], 20),
        HashAlg::Sha256 => (&[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01], 32),
        HashAlg::Sha384 => (&[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02], 48),
        HashAlg::Sha512 => (&[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x03], 64),
    };
    let arcs_len = arcs.len() as u8;
    let head = [0x30, arcs_len + len + 8, 0x30, arcs_len + 4, 0x06, arcs_len];
    [&head[..], arcs, &[0x05, 0x00, 0x04, len]].concat()
}

impl Key {
    pub(super) fn p256() -> Self {
        Self::P256(p256::ecdsa::SigningKey::random(&mut OsRng))
    }

    pub(super) fn p384() -> Self {
        Self::P384(p384::ecdsa::SigningKey::random(&mut OsRng))
    }

    pub(super) fn rsa(bits: usize) -> Result<Self> {
        let key = RsaPrivateKey::new(&mut OsRng, bits).with_context(|| format!("no RSA key of {bits} bits"))?;
        Ok(Self::Rsa(Box::new(key)))
    }

    /// The scheme that our templates give such a key.
    pub(super) const fn scheme(&self) -> Scheme {
        match self {
            Self::P256(_) => Scheme::new(ECDSA, HashAlg::Sha256),
            Self::P384(_) => Scheme::new(ECDSA, HashAlg::Sha384),
            Self::Rsa(_) => Scheme::new(RSASSA, HashAlg::Sha256),
        }
    }

    /// Its public area as an attestation key of our template (RSA: of any size), signing by `scheme`.
    pub(super) fn area(&self, scheme: Scheme) -> Area {
        let ecc = |curve: u16, x: Vec<u8>, y: Vec<u8>| {
            let details = vec![("curveID", curve.to_be_bytes().to_vec()), ("kdf", NULL.to_be_bytes().to_vec())];
            (ECC, details, vec![("x", x), ("y", y)])
        };
        let (kind, details, unique) = match self {
            Self::P256(key) => {
                let point = key.verifying_key().to_encoded_point(false);
                let coordinate = |bytes: Option<&_>| bytes.map(|bytes: &p256::FieldBytes| bytes.to_vec());
                ecc(3, coordinate(point.x()).unwrap_or_default(), coordinate(point.y()).unwrap_or_default())
            }
            Self::P384(key) => {
                let point = key.verifying_key().to_encoded_point(false);
                let coordinate = |bytes: Option<&_>| bytes.map(|bytes: &p384::FieldBytes| bytes.to_vec());
                ecc(4, coordinate(point.x()).unwrap_or_default(), coordinate(point.y()).unwrap_or_default())
            }
            Self::Rsa(key) => {
                let bits = (key.size() * 8) as u16;
                let details = vec![("keyBits", bits.to_be_bytes().to_vec()), ("exponent", vec![0; 4])];
                (RSA, details, vec![("modulus", key.n().to_bytes_be())])
            }
        };
        Area {
            kind,
            name_alg: HashAlg::Sha256.id(),
            attributes: AK_ATTRIBUTES,
            policy: Vec::new(),
            symmetric: NULL.to_be_bytes().to_vec(),
            scheme: scheme.bytes(),
            details,
            unique,
        }
    }

    /// Signs; the scheme has to fit the key.
    pub(super) fn sign(&self, message: &[u8], scheme: Scheme) -> Result<Signature> {
        let digest = scheme.hash.digest(&[message]);
        let numbers = match self {
            Self::P256(key) => {
                let signature: p256::ecdsa::Signature = key.sign_prehash(&digest)?;
                let (r, s) = signature.split_bytes();
                vec![("r", r.to_vec()), ("s", s.to_vec())]
            }
            Self::P384(key) => {
                let signature: p384::ecdsa::Signature = key.sign_prehash(&digest)?;
                let (r, s) = signature.split_bytes();
                vec![("r", r.to_vec()), ("s", s.to_vec())]
            }
            Self::Rsa(key) => {
                let bytes = if scheme.alg == RSAPSS {
                    let salt = scheme.salt.unwrap_or(key.size().saturating_sub(digest.len() + 2));
                    let padding = match scheme.hash {
                        HashAlg::Sha384 => Pss::new_with_salt::<sha2::Sha384>(salt),
                        HashAlg::Sha512 => Pss::new_with_salt::<sha2::Sha512>(salt),
                        _ => Pss::new_with_salt::<sha2::Sha256>(salt),
                    };
                    key.sign_with_rng(&mut OsRng, padding, &digest)?
                } else {
                    let encoded = [digest_info(scheme.hash), digest.to_vec()].concat();
                    key.sign(Pkcs1v15Sign::new_unprefixed(), &encoded)?
                };
                vec![("sig", bytes)]
            }
        };
        Ok(Signature { alg: scheme.alg, hash: scheme.hash.id(), numbers })
    }

    /// The same signature with the other s: as good, and larger or smaller than half the order. P-256 only.
    pub(super) fn other_s(signature: &Signature, high: bool) -> Result<Signature> {
        let [(_, r), (_, s)] = signature.numbers.as_slice() else { anyhow::bail!("no ECDSA signature") };
        let fixed = [r.as_slice(), s].concat();
        let parsed = p256::ecdsa::Signature::from_slice(&fixed)?;
        let low = parsed.normalize_s().unwrap_or(parsed);
        let (r, s) = low.split_scalars();
        let wanted = if high { -*s } else { *s };
        let parsed = p256::ecdsa::Signature::from_scalars(r, wanted)?;
        let (r, s) = parsed.split_bytes();
        Ok(Signature { numbers: vec![("r", r.to_vec()), ("s", s.to_vec())], ..signature.clone() })
    }

    /// Its SubjectPublicKeyInfo in DER.
    pub(super) fn spki(&self) -> Vec<u8> {
        use super::x509::{bit_string, oid, sequence, tlv, unsigned};
        match self {
            Self::P256(key) => {
                let point = key.verifying_key().to_encoded_point(false);
                let algorithm = sequence(&[oid(&[1, 2, 840, 10045, 2, 1]), oid(&[1, 2, 840, 10045, 3, 1, 7])]);
                sequence(&[algorithm, bit_string(point.as_bytes())])
            }
            Self::P384(key) => {
                let point = key.verifying_key().to_encoded_point(false);
                let algorithm = sequence(&[oid(&[1, 2, 840, 10045, 2, 1]), oid(&[1, 3, 132, 0, 34])]);
                sequence(&[algorithm, bit_string(point.as_bytes())])
            }
            Self::Rsa(key) => {
                let numbers = sequence(&[unsigned(&key.n().to_bytes_be()), unsigned(&key.e().to_bytes_be())]);
                let algorithm = sequence(&[oid(&[1, 2, 840, 113_549, 1, 1, 1]), tlv(0x05, &[])]);
                sequence(&[algorithm, bit_string(&numbers)])
            }
        }
    }

    /// Its SubjectPublicKeyInfo in PEM.
    pub(super) fn pem(&self) -> String {
        super::x509::pem("PUBLIC KEY", &self.spki())
    }
}

/// The end of a subjectPublicKey's SHA-1, by which the kernel names keys of files' signatures.
pub(super) fn kernel_key_id(key: &Key) -> [u8; 4] {
    let Key::P256(key) = key else { return [0; 4] };
    let digest = HashAlg::Sha1.digest(&[key.verifying_key().to_encoded_point(false).as_bytes()]);
    digest.last_chunk::<4>().copied().unwrap_or_default()
}
