mod captured;

use std::sync::LazyLock;

use protocol::{
    message::attest::{PcrValue, PcrValueList},
    tpm::{
        attest::ClockInfo,
        pcr::{PcrValues, digest_over},
        public::qualified_name,
        template::{AK_ATTRIBUTES, TPM_RH_ENDORSEMENT},
    },
};
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair},
};

use super::*;

/// A software AK: the template's public area around a key made here.
pub(crate) struct SoftAk {
    key: EcdsaKeyPair,
    rng: SystemRandom,
    pub(crate) kind: AkKind,
    pub(crate) public: TpmtPublic,
}

impl SoftAk {
    pub(crate) fn new(kind: AkKind) -> Self {
        let rng = SystemRandom::new();
        let algorithm = match kind {
            AkKind::P384 => &ECDSA_P384_SHA384_FIXED_SIGNING,
            _ => &ECDSA_P256_SHA256_FIXED_SIGNING,
        };
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &rng).unwrap();
        let key = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &rng).unwrap();
        let mut public = kind.template();
        let KeyPublic::Ecc { x, y, .. } = &mut public.key else { panic!("not an ECC template") };
        let point = &key.public_key().as_ref()[1..];
        let (px, py) = point.split_at(point.len() / 2);
        *x = heapless::Vec::from_slice(px).unwrap();
        *y = heapless::Vec::from_slice(py).unwrap();
        Self { key, rng, kind, public }
    }

    pub(crate) fn ak(&self) -> AkPublic {
        AkPublic::from_tpmt(&self.public.encode()).unwrap()
    }

    pub(crate) fn sign(&self, message: &[u8]) -> Vec<u8> {
        let fixed = self.key.sign(&self.rng, message).unwrap();
        TpmtSignature::from_ecdsa_fixed(self.kind.signature_hash(), fixed.as_ref()).unwrap().encode()
    }

    /// What this AK's TPM would sign over these values.
    pub(crate) fn attest(
        &self,
        qualifying_data: &[u8],
        selection: &PcrSelectionList,
        values: &PcrValues,
    ) -> TpmsAttest {
        TpmsAttest {
            qualified_signer: ak_qualified_name(&self.public.name()).unwrap(),
            extra_data: heapless::Vec::from_slice(qualifying_data).unwrap(),
            clock_info: ClockInfo { clock: 1000, reset_count: 5, restart_count: 2, safe: true },
            firmware_version: 0x2019_1023_0016_3636,
            pcr_select: selection.clone(),
            pcr_digest: digest_over(selection, values, self.kind.signature_hash()).unwrap(),
        }
    }
}

pub(crate) const QUALIFYING_DATA: [u8; 32] = [0x51; 32];

/// One P-256 key for all tests that only need some AK.
pub(crate) static AK: LazyLock<SoftAk> = LazyLock::new(|| SoftAk::new(AkKind::P256));

pub(crate) fn selection(mask: u32) -> PcrSelectionList {
    PcrSelectionList::single(HashAlg::Sha256, mask).unwrap()
}

/// For each selected PCR a value of its own.
pub(crate) fn values(selection: &PcrSelectionList) -> PcrValues {
    let mut values = PcrValues::new();
    for (bank, index) in selection.pcrs() {
        values.set(bank, index, bank.digest(&[b"pcr", &[index]])).unwrap();
    }
    values
}

pub(crate) fn wire(values: &PcrValues) -> PcrValueList {
    let value = |(bank, index, digest): (HashAlg, u8, &protocol::tpm::alg::Digest)| PcrValue {
        bank: bank.id(),
        index,
        digest: protocol::bytes::Bytes::new(digest).unwrap(),
    };
    values.iter().map(value).collect()
}

/// A quote that verifies, over `values`, after `change` had its way with what is signed.
pub(crate) fn quote_of(
    values: &PcrValues,
    selection: &PcrSelectionList,
    change: impl FnOnce(&mut TpmsAttest),
) -> VerifiedQuote {
    let mut attest = AK.attest(&QUALIFYING_DATA, selection, values);
    change(&mut attest);
    let attested = attest.encode();
    VerifiedQuote::verify(&AK.ak(), &attested, &AK.sign(&attested), &QUALIFYING_DATA, selection).unwrap()
}

fn refused(change: impl FnOnce(&mut TpmsAttest)) -> QuoteError {
    let selection = selection(0x81);
    let mut attest = AK.attest(&QUALIFYING_DATA, &selection, &values(&selection));
    change(&mut attest);
    let attested = attest.encode();
    VerifiedQuote::verify(&AK.ak(), &attested, &AK.sign(&attested), &QUALIFYING_DATA, &selection).unwrap_err()
}

fn refused_bytes(attested: &[u8]) -> QuoteError {
    VerifiedQuote::verify(&AK.ak(), attested, &AK.sign(attested), &QUALIFYING_DATA, &selection(1)).unwrap_err()
}

#[test]
fn quotes_of_p256_and_p384_aks_verify() {
    for kind in [AkKind::P256, AkKind::P384] {
        let soft = SoftAk::new(kind);
        let selection = selection(0x81);
        let attested = soft.attest(&QUALIFYING_DATA, &selection, &values(&selection)).encode();
        let quote =
            VerifiedQuote::verify(&soft.ak(), &attested, &soft.sign(&attested), &QUALIFYING_DATA, &selection).unwrap();
        assert_eq!(quote.digest(), HashAlg::Sha256.digest(&[&attested]).as_bytes());
        assert_eq!(quote.attest().clock_info.reset_count, 5);
        assert_eq!((soft.ak().kind(), *soft.ak().name()), (kind, soft.public.name()));
    }
}

#[test]
fn quotes_captured_from_a_tpm_verify_for_each_template_and_their_pcrs_fit() {
    for ((public, attest, signature), kind) in
        captured::QUOTES.into_iter().zip([AkKind::P256, AkKind::P384, AkKind::Rsa2048])
    {
        let (attest, mut signature) = (hex::decode(attest).unwrap(), hex::decode(signature).unwrap());
        let ak = AkPublic::from_tpmt(&hex::decode(public).unwrap()).unwrap();
        assert_eq!(ak.kind(), kind);
        let selection = selection(0x2081);
        let quote = VerifiedQuote::verify(&ak, &attest, &signature, &QUALIFYING_DATA, &selection).unwrap();
        let mut values = PcrValues::new();
        for index in [0, 7, 13] {
            let value = if index == 7 { hex::decode(captured::PCR_7).unwrap() } else { vec![0; 32] };
            values.set(HashAlg::Sha256, index, HashAlg::Sha256.read_digest(&value).unwrap()).unwrap();
        }
        assert!(crate::appraisal::QuotedPcrs::complete(&quote, None, &wire(&values), false).is_ok());
        let last = signature.len() - 1;
        signature[last] ^= 1;
        let refused = VerifiedQuote::verify(&ak, &attest, &signature, &QUALIFYING_DATA, &selection).unwrap_err();
        assert_eq!(refused, QuoteError::BadSignature);
    }
}

#[test]
fn an_rsa_key_is_given_to_ring_as_rsa_public_key() {
    let mut modulus = vec![0xc5; 256];
    modulus[255] = 0x0f;
    let der = rsa_public_key_der(&modulus);
    assert_eq!(der[..9], [0x30, 0x82, 0x01, 0x0a, 0x02, 0x82, 0x01, 0x01, 0x00]);
    assert_eq!((der.len(), &der[265..]), (270, &[2, 3, 1, 0, 1][..]));
}

#[test]
fn a_signature_by_another_key_or_over_other_bytes_is_refused() {
    let selection = selection(1);
    let mut attested = AK.attest(&QUALIFYING_DATA, &selection, &values(&selection)).encode();
    let verify = |attested: &[u8], signature: &[u8]| {
        VerifiedQuote::verify(&AK.ak(), attested, signature, &QUALIFYING_DATA, &selection).unwrap_err()
    };
    let other = SoftAk::new(AkKind::P256).sign(&attested);
    assert_eq!(verify(&attested, &other), QuoteError::BadSignature);
    let signature = AK.sign(&attested);
    assert!(matches!(verify(&attested, &signature[..20]), QuoteError::MalformedSignature(_)));
    assert_eq!(verify(&attested, &SoftAk::new(AkKind::P384).sign(&attested)), QuoteError::BadSignature);
    // The last byte is the digest's: it would parse, and must not be looked at.
    *attested.last_mut().unwrap() ^= 1;
    assert_eq!(verify(&attested, &signature), QuoteError::BadSignature);
    assert_eq!(verify(&[], &signature), QuoteError::BadSignature);
}

#[test]
fn what_a_tpm_did_not_make_or_is_no_quote_is_refused() {
    let selection = selection(1);
    let attested = AK.attest(&QUALIFYING_DATA, &selection, &values(&selection)).encode();
    let mut magic = attested.clone();
    magic[0] = 0;
    assert_eq!(refused_bytes(&magic), QuoteError::NotAQuote(AttestError::NotMadeByTpm(0x0054_4347)));
    let mut certify = attested.clone();
    certify[5] = 0x17;
    assert_eq!(refused_bytes(&certify), QuoteError::NotAQuote(AttestError::NotAQuote(0x8017)));
    let trailing = [&attested[..], &[0]].concat();
    assert_eq!(refused_bytes(&trailing), QuoteError::NotAQuote(AttestError::Malformed(CodecError::TrailingBytes)));
    assert_eq!(refused_bytes(&magic).code(), "not_a_quote");
}

#[test]
fn a_quote_of_another_hierarchy_is_refused() {
    let name = AK.public.name();
    let owner = |attest: &mut TpmsAttest| attest.qualified_signer = qualified_name(0x4000_0001, &name).unwrap();
    assert_eq!(refused(owner), QuoteError::WrongSigner);
    assert_eq!(refused(|attest| attest.qualified_signer = name), QuoteError::WrongSigner);
    let right = |attest: &mut TpmsAttest| {
        attest.qualified_signer = qualified_name(TPM_RH_ENDORSEMENT, &name).unwrap();
        attest.extra_data.clear();
    };
    assert_eq!(refused(right), QuoteError::WrongBinding);
}

#[test]
fn qualifying_data_is_compared_to_the_last_byte() {
    assert_eq!(refused(|attest| attest.extra_data[31] ^= 1), QuoteError::WrongBinding);
    assert_eq!(refused(|attest| attest.extra_data.truncate(31)), QuoteError::WrongBinding);
    assert_eq!(refused(|attest| attest.extra_data.push(0).unwrap()), QuoteError::WrongBinding);
}

#[test]
fn a_quote_over_other_pcrs_or_another_bank_is_refused() {
    let select = |selection: PcrSelectionList| refused(|attest| attest.pcr_select = selection);
    assert_eq!(select(selection(0x80)), QuoteError::WrongSelection);
    assert_eq!(select(selection(0x83)), QuoteError::WrongSelection);
    assert_eq!(select(PcrSelectionList::new()), QuoteError::WrongSelection);
    assert_eq!(select(PcrSelectionList::single(HashAlg::Sha1, 0x81).unwrap()), QuoteError::WrongSelection);
    let mut two = selection(0x81);
    two.push(protocol::tpm::pcr::PcrSelection::new(HashAlg::Sha1, 1).unwrap()).unwrap();
    assert_eq!(select(two), QuoteError::WrongSelection);
}

#[test]
fn an_ak_that_is_not_the_template_is_refused() {
    let mut public = AK.public.clone();
    public.attributes.0 = AK_ATTRIBUTES.0 & !(1 << 16);
    let error = AkPublic::from_tpmt(&public.encode()).unwrap_err();
    assert_eq!(error, QuoteError::AkTemplate(AkTemplateError::Attributes { found: public.attributes.0 }));
    assert_eq!(error.code(), "wrong_ak_template");
    assert_eq!(AkPublic::from_tpmt(&[]).unwrap_err().code(), "bad_ak");
    assert!(AkPublic::from_tpmt(&[&AK.public.encode()[..], &[0]].concat()).is_err());
    // The template itself holds no key.
    assert!(AkPublic::from_tpmt(&AkKind::P256.template().encode()).is_err());
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_refused(
        attested in proptest::collection::vec(0u8.., 0..400),
        signature in proptest::collection::vec(0u8.., 0..400),
    ) {
        let verified = VerifiedQuote::verify(&AK.ak(), &attested, &signature, &QUALIFYING_DATA, &selection(1));
        proptest::prop_assert!(verified.is_err());
        let _ = AkPublic::from_tpmt(&attested);
    }
}

#[test]
fn a_foreign_quote_is_verified_by_signature_and_binding_alone() {
    for ((public, attest, signature), kind) in captured::QUOTES.into_iter().zip(["ECC P-256", "ECC P-384", "RSA 2048"])
    {
        let (attest, signature) = (hex::decode(attest).unwrap(), hex::decode(signature).unwrap());
        let area = hex::decode(public).unwrap();
        let spki = TpmtPublic::decode(&area).unwrap().spki_der().unwrap();
        for key in [AttestationKey::from_bytes(&area).unwrap(), AttestationKey::from_bytes(&spki).unwrap()] {
            assert_eq!(key.kind(), kind);
            let verify = |data| VerifiedQuote::verify_foreign(&key, &attest, &signature, data, false);
            let quote = verify(None).unwrap();
            assert_eq!(quote.attest().extra_data, QUALIFYING_DATA);
            assert!(verify(Some(&QUALIFYING_DATA)).is_ok());
            for other in [&QUALIFYING_DATA[..31], &[0; 32], &[]] {
                assert_eq!(verify(Some(other)).unwrap_err(), ForeignQuoteError::WrongBinding);
            }
            let mut values = PcrValues::new();
            for index in [0, 7, 13] {
                let value = if index == 7 { hex::decode(captured::PCR_7).unwrap() } else { vec![0; 32] };
                values.set(HashAlg::Sha256, index, HashAlg::Sha256.read_digest(&value).unwrap()).unwrap();
            }
            assert!(matches!(crate::appraisal::QuotedPcrs::of_values(&quote, &values), Ok(Some(_))));
            values.set(HashAlg::Sha256, 7, protocol::tpm::alg::Digest::zero(HashAlg::Sha256)).unwrap();
            assert!(matches!(crate::appraisal::QuotedPcrs::of_values(&quote, &values), Ok(None)));
        }
    }
}

#[test]
fn a_foreign_quote_that_is_none_is_refused_by_its_own_reason() {
    let selection = selection(1);
    let attested = AK.attest(&QUALIFYING_DATA, &selection, &values(&selection)).encode();
    let key = AttestationKey::from_bytes(&AK.public.encode()).unwrap();
    let refused = |bytes: &[u8]| VerifiedQuote::verify_foreign(&key, bytes, &AK.sign(bytes), None, false).unwrap_err();
    let mut magic = attested.clone();
    magic[0] = 0;
    assert_eq!((refused(&magic).code(), refused(&attested[..9]).code()), ("wrong_magic", "quote_truncated"));
    let mut certify = attested.clone();
    certify[5] = 0x17;
    assert_eq!(refused(&certify), ForeignQuoteError::NotAQuote(AttestError::NotAQuote(0x8017), 6));
    assert_eq!(refused(&[&attested[..], &[0]].concat()).code(), "quote_trailing_bytes");
    let other = SoftAk::new(AkKind::P256).sign(&attested);
    let verify = |signature: &[u8]| VerifiedQuote::verify_foreign(&key, &attested, signature, None, false).unwrap_err();
    assert_eq!(verify(&other), ForeignQuoteError::Signature(VerifyError::Bad));
    assert_eq!(verify(&other[..5]).code(), "signature_truncated");
}
