use protocol::{bytes::Bytes, message::attest::PcrValue};

use super::{
    super::quote::tests::{quote_of, selection, values, wire},
    *,
};

const SHA256: HashAlg = HashAlg::Sha256;
const MASK: u32 = 0x2081;

fn complete(
    base: Option<&[(u16, u8, Vec<u8>)]>,
    pcrs: &PcrValueList,
    from_base: bool,
) -> Result<QuotedPcrs, QuoteError> {
    let selection = selection(MASK);
    QuotedPcrs::complete(&quote_of(&values(&selection), &selection, |_| {}), base, pcrs, from_base)
}

fn all() -> PcrValueList {
    wire(&values(&selection(MASK)))
}

fn remembered() -> Vec<(u16, u8, Vec<u8>)> {
    complete(None, &all(), false).unwrap().to_checkpoint()
}

fn value(bank: u16, index: u8, digest: &[u8]) -> PcrValue {
    PcrValue { bank, index, digest: Bytes::new(digest).unwrap() }
}

#[test]
fn values_that_hash_to_the_quote_are_taken() {
    let pcrs = complete(None, &all(), false).unwrap();
    assert_eq!(pcrs.iter().map(|(_, index, _)| index).collect::<Vec<_>>(), [0, 7, 13]);
    assert_eq!(pcrs.value(SHA256, 7), Some(&SHA256.digest(&[b"pcr", &[7]])));
    assert_eq!((pcrs.value(SHA256, 8), pcrs.value(HashAlg::Sha1, 7)), (None, None));
    assert_eq!(pcrs.banks().collect::<Vec<_>>(), [SHA256]);
    assert_eq!(pcrs.ima_targets().count(), 0);
    assert_eq!(pcrs.to_checkpoint()[2], (SHA256.id(), 13, SHA256.digest(&[b"pcr", &[13]]).to_vec()));
}

#[test]
fn a_difference_is_completed_from_what_is_remembered() {
    let mut base = remembered();
    base[1].2 = vec![0; 32];
    // Not quoted any more: left out.
    base.push((SHA256.id(), 14, vec![1; 32]));
    base.push((HashAlg::Sha1.id(), 7, vec![1; 20]));
    let changed: PcrValueList = all().into_iter().filter(|value| value.index == 7).collect();
    let pcrs = complete(Some(&base), &changed, true).unwrap();
    assert_eq!(pcrs.to_checkpoint(), remembered());
    assert_eq!(complete(Some(&remembered()), &PcrValueList::new(), true).unwrap().to_checkpoint(), remembered());
}

#[test]
fn another_base_than_the_agents_is_refused_by_the_digest() {
    let mut base = remembered();
    base[0].2 = vec![0; 32];
    let changed: PcrValueList = all().into_iter().filter(|value| value.index == 7).collect();
    assert_eq!(complete(Some(&base), &changed, true).unwrap_err(), QuoteError::WrongPcrDigest);
    assert_eq!(complete(None, &changed, true).unwrap_err(), QuoteError::NoBase);
}

#[test]
fn a_base_that_was_not_asked_for_is_not_used() {
    let changed: PcrValueList = all().into_iter().filter(|value| value.index == 7).collect();
    let error = complete(Some(&remembered()), &changed, false).unwrap_err();
    assert_eq!(error, QuoteError::WrongPcrs(PcrError::Missing { bank: SHA256, index: 0 }));
}

#[test]
fn values_that_were_not_quoted_or_come_twice_are_refused() {
    let with = |more| {
        let mut list = all();
        list.push(more).unwrap();
        complete(None, &list, false).unwrap_err()
    };
    let extra = |bank, index| QuoteError::WrongPcrs(PcrError::Extra { bank, index });
    assert_eq!(with(value(SHA256.id(), 8, &[0; 32])), extra(SHA256, 8));
    assert_eq!(with(value(SHA256.id(), 200, &[0; 32])), extra(SHA256, 200));
    assert_eq!(with(value(HashAlg::Sha1.id(), 7, &[0; 20])), extra(HashAlg::Sha1, 7));
    let twice = with(all()[1].clone());
    assert_eq!(twice, QuoteError::DuplicateValue { bank: SHA256, index: 7 });
    assert_eq!(with(value(0x12, 7, &[0; 32])), QuoteError::UnknownBank(0x12));
    assert_eq!(twice.code(), "wrong_pcrs");
}

#[test]
fn a_value_of_another_length_or_content_is_refused() {
    let mut list = all();
    list[1].digest = Bytes::new(&[0; 20]).unwrap();
    assert_eq!(complete(None, &list, false).unwrap_err().code(), "wrong_pcrs");
    list[1].digest = Bytes::new(&[0; 32]).unwrap();
    assert_eq!(complete(None, &list, false).unwrap_err(), QuoteError::WrongPcrDigest);
}

#[test]
fn a_selection_goes_over_the_wire_bank_by_bank() {
    let mut list = selection(0x81);
    list.push(protocol::tpm::pcr::PcrSelection::new(HashAlg::Sha1, 2).unwrap()).unwrap();
    let wire = selection_to_wire(&list);
    assert_eq!(wire.iter().map(|bank| (bank.bank, bank.mask)).collect::<Vec<_>>(), [(0xb, 0x81), (4, 2)]);
}
