//! TPMT_SIGNATURE of a quote, and the forms that verifiers take. Nothing is verified here.

use alloc::vec::Vec;

use super::{
    alg::{self, EccCurve, HashAlg},
    wire::Out,
};
use crate::{
    codec::{CodecError, Reader},
    limits,
};

/// Why a signature was refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each message says it")]
pub enum SignatureError {
    #[error("malformed TPMT_SIGNATURE")]
    Malformed(#[from] CodecError),
    #[error("unsupported signature algorithm 0x{0:04x}: only ECDSA and RSASSA are accepted")]
    UnknownAlgorithm(u16),
    #[error("not an ECDSA signature")]
    NotEcdsa,
    #[error("a number of the signature is zero or longer than the curve's field")]
    WrongLength,
}

/// TPMT_SIGNATURE (TPM 2.0 Part 2): ECDSA or RSASSA.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum TpmtSignature {
    /// TPMS_SIGNATURE_ECDSA.
    Ecdsa {
        /// Hash of what was signed.
        hash: HashAlg,
        /// r, big-endian, of any padding.
        r: heapless::Vec<u8, 48>,
        /// s.
        s: heapless::Vec<u8, 48>,
    },
    /// TPMS_SIGNATURE_RSASSA.
    Rsassa {
        /// Hash of what was signed.
        hash: HashAlg,
        /// PKCS #1 v1.5 signature, as long as the modulus.
        signature: heapless::Vec<u8, 256>,
    },
}

impl TpmtSignature {
    /// Decodes a whole TPMT_SIGNATURE; every byte must be used.
    ///
    /// # Errors
    /// [`SignatureError::UnknownAlgorithm`] for other schemes, [`SignatureError::Malformed`] for bytes that are none.
    pub fn decode(bytes: &[u8]) -> Result<Self, SignatureError> {
        if bytes.len() > limits::MAX_SIGNATURE_LEN {
            return Err(CodecError::TooLong.into());
        }
        let mut reader = Reader::new(bytes);
        let signature = match reader.u16()? {
            alg::TPM_ALG_ECDSA => {
                let hash = HashAlg::decode(&mut reader)?;
                Self::Ecdsa { hash, r: field(&mut reader)?, s: field(&mut reader)? }
            }
            alg::TPM_ALG_RSASSA => {
                let hash = HashAlg::decode(&mut reader)?;
                Self::Rsassa { hash, signature: field(&mut reader)? }
            }
            other => return Err(SignatureError::UnknownAlgorithm(other)),
        };
        reader.finish()?;
        Ok(signature)
    }

    /// Its bytes; the counterpart of [`decode`](Self::decode).
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Out::new();
        match self {
            Self::Ecdsa { hash, r, s } => out.u16(alg::TPM_ALG_ECDSA).u16(hash.id()).tpm2b(r).tpm2b(s),
            Self::Rsassa { hash, signature } => out.u16(alg::TPM_ALG_RSASSA).u16(hash.id()).tpm2b(signature),
        };
        out.into_vec()
    }

    /// An ECDSA signature from its fixed form r ‖ s, for software signers.
    ///
    /// # Errors
    /// [`SignatureError::WrongLength`] unless `fixed` has an even length of at most 96 bytes.
    pub fn from_ecdsa_fixed(hash: HashAlg, fixed: &[u8]) -> Result<Self, SignatureError> {
        let half = fixed.len() / 2;
        let (r, s) = fixed.split_at_checked(half).ok_or(SignatureError::WrongLength)?;
        if r.len() != s.len() {
            return Err(SignatureError::WrongLength);
        }
        let number = |n| heapless::Vec::from_slice(n).map_err(|_| SignatureError::WrongLength);
        Ok(Self::Ecdsa { hash, r: number(r)?, s: number(s)? })
    }

    /// The hash of what was signed.
    pub const fn hash(&self) -> HashAlg {
        match self {
            Self::Ecdsa { hash, .. } | Self::Rsassa { hash, .. } => *hash,
        }
    }

    /// r ‖ s, each padded to the field's length: 64 bytes for P-256, 96 for P-384 (IEEE P1363's form).
    ///
    /// # Errors
    /// [`SignatureError::NotEcdsa`]; [`SignatureError::WrongLength`] where a number is zero or does not fit the curve.
    pub fn ecdsa_fixed(&self, curve: EccCurve) -> Result<heapless::Vec<u8, 96>, SignatureError> {
        let Self::Ecdsa { r, s, .. } = self else { return Err(SignatureError::NotEcdsa) };
        let mut fixed = heapless::Vec::new();
        for number in [r, s] {
            let number = alg::trim_zeros(number);
            let pad = curve.field_len().checked_sub(number.len()).ok_or(SignatureError::WrongLength)?;
            if number.is_empty() {
                return Err(SignatureError::WrongLength);
            }
            let start = fixed.len();
            fixed.resize(pad.saturating_add(start), 0).map_err(|_| SignatureError::WrongLength)?;
            fixed.extend_from_slice(number).map_err(|_| SignatureError::WrongLength)?;
        }
        Ok(fixed)
    }
}

fn field<const N: usize>(reader: &mut Reader<'_>) -> Result<heapless::Vec<u8, N>, CodecError> {
    heapless::Vec::from_slice(reader.tpm2b(N)?).map_err(|_| CodecError::TooLong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_numbers_are_padded_and_long_ones_refused() {
        let signature = TpmtSignature::decode(&[0, 0x18, 0, 0xb, 0, 1, 7, 0, 2, 1, 9]).unwrap();
        let fixed = signature.ecdsa_fixed(EccCurve::P256).unwrap();
        assert_eq!((fixed.len(), fixed[31], fixed[62], fixed[63]), (64, 7, 1, 9));
        assert_eq!(signature.ecdsa_fixed(EccCurve::P384).unwrap().len(), 96);
        let long = TpmtSignature::from_ecdsa_fixed(HashAlg::Sha384, &[1; 96]).unwrap();
        assert_eq!(long.ecdsa_fixed(EccCurve::P256), Err(SignatureError::WrongLength));
        assert_eq!(TpmtSignature::decode(&long.encode()), Ok(long));
        let zero = TpmtSignature::decode(&[0, 0x18, 0, 0xb, 0, 1, 0, 0, 1, 1]).unwrap();
        assert_eq!(zero.ecdsa_fixed(EccCurve::P256), Err(SignatureError::WrongLength));
    }

    #[test]
    fn other_schemes_prefixes_and_trailing_bytes_are_refused() {
        assert_eq!(TpmtSignature::decode(&[0, 0x16, 0, 0xb]), Err(SignatureError::UnknownAlgorithm(0x16)));
        let rsa =
            TpmtSignature::Rsassa { hash: HashAlg::Sha256, signature: heapless::Vec::from_slice(&[5; 256]).unwrap() };
        let mut bytes = rsa.encode();
        assert_eq!(TpmtSignature::decode(&bytes), Ok(rsa.clone()));
        assert_eq!(rsa.ecdsa_fixed(EccCurve::P256), Err(SignatureError::NotEcdsa));
        for len in 0..bytes.len() {
            assert_eq!(TpmtSignature::decode(&bytes[..len]), Err(CodecError::Truncated.into()));
        }
        bytes.push(0);
        assert_eq!(TpmtSignature::decode(&bytes), Err(CodecError::TrailingBytes.into()));
    }
}
