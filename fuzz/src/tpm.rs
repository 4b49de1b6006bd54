//! The TPM's structures and responses.

use control_plane::appraisal::AkPublic;
use protocol::{
    codec::Reader,
    tpm::{
        alg::{Digest, EccCurve, HashAlg},
        attest::{ClockInfo, TpmsAttest},
        command::{self, Auth, CreatedPrimary, NvPublic, ObjectPublic, PcrRead, Quoted, Response, TimeInfo},
        credential::make_credential,
        pcr::{PcrSelection, PcrSelectionList, PcrValues, digest_over},
        public::{KeyPublic, Name, TpmtPublic},
        session::{Protect, StartingSession},
        signature::TpmtSignature,
        template::{AkKind, EkTemplate, check_ak},
    },
};

use crate::script::XorShift;

/// The generator of P-256, x then y: a point that is a key.
const P256_G: [[u8; 32]; 2] = [
    [
        0x6b, 0x17, 0xd1, 0xf2, 0xe1, 0x2c, 0x42, 0x47, 0xf8, 0xbc, 0xe6, 0xe5, 0x63, 0xa4, 0x40, 0xf2, 0x77, 0x03,
        0x7d, 0x81, 0x2d, 0xeb, 0x33, 0xa0, 0xf4, 0xa1, 0x39, 0x45, 0xd8, 0x98, 0xc2, 0x96,
    ],
    [
        0x4f, 0xe3, 0x42, 0xe2, 0xfe, 0x1a, 0x7f, 0x9b, 0x8e, 0xe7, 0xeb, 0x4a, 0x7c, 0x0f, 0x9e, 0x16, 0x2b, 0xce,
        0x33, 0x57, 0x6b, 0x31, 0x5e, 0xce, 0xcb, 0xb6, 0x40, 0x68, 0x37, 0xbf, 0x51, 0xf5,
    ],
];

/// `public` with a key in it: a point, or an odd number of full length.
fn with_key(mut public: TpmtPublic) -> TpmtPublic {
    match &mut public.key {
        KeyPublic::Rsa { modulus, key_bits, .. } => {
            *modulus = std::iter::repeat_n(0xc5, usize::from(*key_bits) / 8).collect();
        }
        KeyPublic::Ecc { x, y, .. } => {
            *x = heapless::Vec::from_slice(&P256_G[0]).expect("fits");
            *y = heapless::Vec::from_slice(&P256_G[1]).expect("fits");
        }
    }
    public
}

/// A TPMT_PUBLIC that decodes encodes to the same bytes; what is made of its key (SubjectPublicKeyInfo, a check against
/// the AK templates, a credential) may fail, and does not panic.
pub fn tpm_public(data: &[u8]) {
    let Ok(public) = TpmtPublic::decode(data) else { return };
    assert_eq!(public.encode(), data);
    assert_eq!(Name::decode(&public.name()), Ok(public.name()));
    let spki = public.spki_der();
    let _ = public.sec1_point();
    if check_ak(&public).is_ok() {
        assert!(spki.is_ok(), "an AK that has no key");
    }
    let _ = AkPublic::from_tpmt(data);
    let credential = make_credential(&public, &public.name(), &[7; 32], &mut XorShift::new(1));
    if credential.is_ok() {
        assert!(public.is_storage_key() && spki.is_ok());
    }
}

pub(crate) fn tpm_public_seeds() -> Vec<Vec<u8>> {
    let eks = [EkTemplate::P256, EkTemplate::P384, EkTemplate::Rsa2048].map(EkTemplate::public);
    let aks = AkKind::ALL.map(AkKind::template);
    let templates: Vec<_> = eks.into_iter().chain(aks).collect();
    templates.iter().map(TpmtPublic::encode).chain(templates.iter().cloned().map(|it| with_key(it).encode())).collect()
}

/// A TPMS_ATTEST that decodes says the same after it was encoded and decoded again.
pub fn tpm_attest(data: &[u8]) {
    let Ok(attest) = TpmsAttest::decode(data) else { return };
    assert_eq!(TpmsAttest::decode(&attest.encode()), Ok(attest));
    assert!(TpmsAttest::decode(&data[..data.len() - 1]).is_err());
    assert!(TpmsAttest::decode(&[data, &[0]].concat()).is_err());
}

fn attest() -> TpmsAttest {
    TpmsAttest {
        qualified_signer: Name::over(HashAlg::Sha256, &[b"signer"]),
        extra_data: heapless::Vec::from_slice(&[0x41; 32]).expect("fits"),
        clock_info: ClockInfo { clock: 1 << 40, reset_count: 3, restart_count: 1, safe: true },
        firmware_version: 0x2020_0101_0000_0001,
        pcr_select: selection(&[(HashAlg::Sha256, 0x2481), (HashAlg::Sha1, 1)]),
        pcr_digest: HashAlg::Sha256.digest(&[b"values"]),
    }
}

pub(crate) fn tpm_attest_seeds() -> Vec<Vec<u8>> {
    let other = TpmsAttest { pcr_select: selection(&[]), pcr_digest: Digest::zero(HashAlg::Sha512), ..attest() };
    vec![attest().encode(), other.encode()]
}

/// A TPMT_SIGNATURE that decodes encodes to the same bytes; its fixed form, if it has one, is as long as the curve's.
pub fn tpm_signature(data: &[u8]) {
    let _ = TpmtSignature::from_ecdsa_fixed(HashAlg::Sha256, data);
    let Ok(signature) = TpmtSignature::decode(data) else { return };
    assert_eq!(signature.encode(), data);
    for curve in [EccCurve::P256, EccCurve::P384] {
        if let Ok(fixed) = signature.ecdsa_fixed(curve) {
            assert_eq!(fixed.len(), 2 * curve.field_len());
            let again = TpmtSignature::from_ecdsa_fixed(signature.hash(), &fixed).expect("an even length");
            assert_eq!(again.ecdsa_fixed(curve), Ok(fixed));
        }
    }
}

pub(crate) fn tpm_signature_seeds() -> Vec<Vec<u8>> {
    let ecdsa = |hash, len| TpmtSignature::from_ecdsa_fixed(hash, &vec![5; len]).expect("even");
    let signature = heapless::Vec::from_slice(&[9; 256]).expect("fits");
    [ecdsa(HashAlg::Sha256, 64), ecdsa(HashAlg::Sha384, 96), TpmtSignature::Rsassa { hash: HashAlg::Sha256, signature }]
        .iter()
        .map(TpmtSignature::encode)
        .collect()
}

/// A selection that decodes says the same after it was encoded and decoded again; what is left without itself is
/// nothing; a digest over exactly its values exists, unless it names a bank twice.
pub fn pcr_selection(data: &[u8]) {
    let mut reader = Reader::new(data);
    let Ok(list) = PcrSelectionList::decode(&mut reader) else { return };
    assert!(reader.remaining() <= data.len());
    let bytes = list.encode();
    assert_eq!(PcrSelectionList::decode(&mut Reader::new(&bytes)), Ok(list.clone()));
    assert_eq!(list.count(), list.pcrs().count());
    assert!(list.without(&list).is_empty());
    let mut values = PcrValues::new();
    for (bank, index) in list.pcrs() {
        assert!(list.contains(bank, index));
        values.set(bank, index, Digest::zero(bank)).expect("a PCR that can be selected can have a value");
    }
    let digest = digest_over(&list, &values, HashAlg::Sha256);
    // Only who names no bank twice is the same as itself.
    assert_eq!(digest.is_ok(), list.same_as(&list), "{list:?}: {digest:?}");
}

fn selection(banks: &[(HashAlg, u32)]) -> PcrSelectionList {
    let mut list = PcrSelectionList::new();
    for (bank, mask) in banks {
        list.push(PcrSelection::new(*bank, *mask).expect("below 24")).expect("four banks at most");
    }
    list
}

pub(crate) fn pcr_selection_seeds() -> Vec<Vec<u8>> {
    let all = HashAlg::ALL.map(|bank| (bank, 0x00ff_ffff));
    [&[][..], &[(HashAlg::Sha256, 0x80)], &all].into_iter().map(|banks| selection(banks).encode()).collect()
}

/// No response makes a parser panic; one that says another length than it has is refused by all of them.
///
/// A response that starts a session is then taken for the answer to a command under it as well.
pub fn tpm_response(data: &[u8]) {
    let results = parse_as_each(data);
    let says = data.first_chunk::<10>().and_then(|header| command::response_len(header).ok());
    if says != Some(data.len()) {
        assert_eq!(results, [false; 15], "{} bytes that say {says:?}", data.len());
    }
    let _ = command::secret_parameter(data);
    if results[14] {
        session(data);
    }
}

/// Which parsers take a response.
fn parse_as_each(data: &[u8]) -> [bool; 15] {
    [
        Response::parse(data, false).is_ok(),
        Response::parse(data, true).is_ok(),
        command::parse_done(data).is_ok(),
        command::parse_handles(data).is_ok(),
        command::parse_pcr_banks(data).is_ok(),
        command::parse_properties(data).is_ok(),
        TimeInfo::parse(data).is_ok(),
        command::parse_secret(data).is_ok(),
        ObjectPublic::parse(data).is_ok(),
        CreatedPrimary::parse(data).is_ok(),
        Quoted::parse(data).is_ok(),
        PcrRead::parse(data).is_ok(),
        NvPublic::parse(data).is_ok(),
        command::parse_nv_data(data).is_ok(),
        command::parse_started_session(data).is_ok(),
    ]
}

fn session(data: &[u8]) {
    let mut rng = XorShift::new(2);
    let ek = with_key(EkTemplate::P256.public());
    let (starting, _) = StartingSession::new(&ek, 0x8100_0001, &mut rng).expect("a storage key");
    let mut session = starting.finish(data).expect("it was parsed");
    assert!(session.open(data).is_err(), "nothing was asked");
    let protect = Protect { command: false, response: true, keep: true };
    session.protect(&command::get_random(16), &[], protect, &mut rng).expect("no Name is needed");
    assert!(session.open(data).is_err(), "not made by who holds the key");
    let _ = session.protect(&command::get_random(16), &[Auth::EmptyPassword], protect, &mut rng);
}

/// A response with this tag and code, its length right.
fn response(tag: u16, code: u32, parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    let len = u32::try_from(10 + body.len()).expect("short");
    [&tag.to_be_bytes()[..], &len.to_be_bytes(), &code.to_be_bytes(), &body].concat()
}

fn tpm2b(bytes: &[u8]) -> Vec<u8> {
    crate::script::long(bytes)
}

pub(crate) fn tpm_response_seeds() -> Vec<Vec<u8>> {
    const PLAIN: u16 = 0x8001;
    const SESSIONS: u16 = 0x8002;
    let plain = |parts: &[&[u8]]| response(PLAIN, 0, parts);
    // Parameters behind their length, then one empty answer to a password.
    let sessions = |handle: &[u8], parameters: &[u8]| {
        let len = u32::try_from(parameters.len()).expect("short").to_be_bytes();
        response(SESSIONS, 0, &[handle, &len, parameters, &[0, 0, 1, 0, 0]])
    };
    let ak = with_key(AkKind::P256.template());
    let (public, name) = (tpm2b(&ak.encode()), tpm2b(&ak.name()));
    let list = selection(&[(HashAlg::Sha256, 0x81)]);
    let digests = [&2_u32.to_be_bytes()[..], &tpm2b(&[0; 32]), &tpm2b(&[1; 32])].concat();
    // TPMS_NV_PUBLIC: index, nameAlg, attributes, no policy, size.
    let nv = [&0x01c0_000a_u32.to_be_bytes()[..], &[0, 0xb], &0x6202_0001_u32.to_be_bytes(), &[0, 0], &[4, 0]].concat();
    let nv_name = tpm2b(&Name::over(HashAlg::Sha256, &[&nv]));
    // moreData, TPM_CAP, count.
    let capability = |cap: u32, count: u32| [&[0][..], &cap.to_be_bytes(), &count.to_be_bytes()].concat();
    let created = [&public[..], &tpm2b(&[0; 20]), &tpm2b(&[2; 32]), &[0x80, 0x21, 0x40, 0, 0, 0xb], &tpm2b(&[]), &name];
    let clock = [&9_u64.to_be_bytes()[..], &8_u64.to_be_bytes(), &[0, 0, 0, 1, 0, 0, 0, 2, 1]].concat();
    let signature = &tpm_signature_seeds()[0];
    vec![
        plain(&[]),
        response(PLAIN, 0x922, &[]),
        response(0x00c4, 0x1e, &[]),
        sessions(&[], &[]),
        plain(&[&capability(1, 2), &[0x81, 0, 0, 1, 0x81, 1, 0, 2]]),
        plain(&[&capability(5, 2), &[0, 4, 3, 0, 0, 0, 0, 0xb, 3, 0xff, 0xff, 0xff]]),
        plain(&[&capability(6, 1), &[0, 0, 1, 5, 0, 0, 0, 7]]),
        plain(&[&clock]),
        plain(&[&tpm2b(&[3; 32])]),
        plain(&[&public, &name, &name]),
        sessions(&[0x80, 0, 0, 1], &created.concat()),
        sessions(&[], &[&tpm2b(&attest().encode())[..], signature].concat()),
        plain(&[&[0, 0, 0, 9], &list.encode(), &digests]),
        plain(&[&tpm2b(&nv), &nv_name]),
        sessions(&[], &tpm2b(&[4; 700])),
        plain(&[&[2, 0, 0, 0], &tpm2b(&[5; 32])]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_parser_has_a_seed_that_it_takes() {
        let mut taken = [false; 15];
        for seed in tpm_response_seeds() {
            taken.iter_mut().zip(parse_as_each(&seed)).for_each(|(taken, parsed)| *taken |= parsed);
        }
        assert_eq!(taken, [true; 15]);
    }

    #[test]
    fn every_seed_decodes() {
        assert!(tpm_public_seeds().iter().all(|seed| TpmtPublic::decode(seed).is_ok()));
        assert!(tpm_attest_seeds().iter().all(|seed| TpmsAttest::decode(seed).is_ok()));
        assert!(tpm_signature_seeds().iter().all(|seed| TpmtSignature::decode(seed).is_ok()));
        assert!(pcr_selection_seeds().iter().all(|seed| PcrSelectionList::decode(&mut Reader::new(seed)).is_ok()));
    }

    #[test]
    fn credentials_are_made_for_two_of_the_keys() {
        let publics = tpm_public_seeds().into_iter().filter_map(|seed| TpmtPublic::decode(&seed).ok());
        let made = publics.filter(|it| make_credential(it, &it.name(), &[7; 32], &mut XorShift::new(1)).is_ok());
        assert_eq!(made.count(), 2);
    }
}
