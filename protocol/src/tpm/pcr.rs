//! PCRs: which are meant, what they hold, and how they got there.

use alloc::{collections::BTreeMap, vec::Vec};

use super::{
    alg::{Digest, HashAlg},
    wire::Out,
};
use crate::{
    codec::{CodecError, Reader},
    limits::{MAX_PCR_BANKS, PCR_COUNT},
};

/// Every selectable PCR.
const ALL_PCRS: u32 = (1 << PCR_COUNT) - 1;

/// Why PCRs do not fit together.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each message says it")]
pub enum PcrError {
    #[error("no value for PCR {index} of bank {bank}")]
    Missing { bank: HashAlg, index: u8 },
    #[error("a value for PCR {index} of bank {bank}, which was not selected")]
    Extra { bank: HashAlg, index: u8 },
    #[error("a value of the wrong length for bank {bank}")]
    WrongLength { bank: HashAlg },
    #[error("there is no PCR {index}")]
    NoSuchPcr { index: u8 },
    #[error("bank {bank} is selected twice")]
    DuplicateBank { bank: HashAlg },
    #[error("more banks than there are")]
    TooManyBanks,
}

/// PCRs of one bank (TPMS_PCR_SELECTION).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PcrSelection {
    /// The bank.
    pub bank: HashAlg,
    mask: u32,
}

impl PcrSelection {
    /// Bit `i` of `mask` selects PCR `i`; `None` if a bit above 23 is set.
    pub const fn new(bank: HashAlg, mask: u32) -> Option<Self> {
        if mask & !ALL_PCRS == 0 { Some(Self { bank, mask }) } else { None }
    }

    /// Selects each of `indices`; [`PcrError::NoSuchPcr`] above 23.
    pub fn from_indices(bank: HashAlg, indices: impl IntoIterator<Item = u8>) -> Result<Self, PcrError> {
        let mask = indices.into_iter().try_fold(0, |mask, index| Ok(mask | bit(index)?))?;
        Ok(Self { bank, mask })
    }

    /// Bit `i` is PCR `i`; bits above 23 are never set.
    pub const fn mask(&self) -> u32 {
        self.mask
    }

    /// The selected PCRs, ascending.
    pub fn indices(&self) -> impl Iterator<Item = u8> + use<> {
        let mask = self.mask;
        (0u8..32).filter(move |index| mask.checked_shr(u32::from(*index)).is_some_and(|rest| rest & 1 == 1))
    }
}

fn bit(index: u8) -> Result<u32, PcrError> {
    if usize::from(index) >= PCR_COUNT {
        return Err(PcrError::NoSuchPcr { index });
    }
    1u32.checked_shl(u32::from(index)).ok_or(PcrError::NoSuchPcr { index })
}

/// TPML_PCR_SELECTION: PCRs of up to four banks. The order of banks is part of what a PCR digest covers.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct PcrSelectionList(heapless::Vec<PcrSelection, MAX_PCR_BANKS>);

impl PcrSelectionList {
    /// Nothing selected.
    pub const fn new() -> Self {
        Self(heapless::Vec::new())
    }

    /// PCRs of one bank; `None` if a bit above 23 is set.
    pub fn single(bank: HashAlg, mask: u32) -> Option<Self> {
        let mut list = Self::new();
        list.push(PcrSelection::new(bank, mask)?).ok()?;
        Some(list)
    }

    /// Adds a bank; [`PcrError::DuplicateBank`] if it is there, [`PcrError::TooManyBanks`] above four.
    pub fn push(&mut self, selection: PcrSelection) -> Result<(), PcrError> {
        if self.0.iter().any(|other| other.bank == selection.bank) {
            return Err(PcrError::DuplicateBank { bank: selection.bank });
        }
        self.0.push(selection).map_err(|_| PcrError::TooManyBanks)
    }

    /// The banks in order.
    pub fn iter(&self) -> impl Iterator<Item = &PcrSelection> {
        self.0.iter()
    }

    /// Every (bank, PCR) in the order in which a quote hashes them.
    pub fn pcrs(&self) -> impl Iterator<Item = (HashAlg, u8)> {
        self.0.iter().flat_map(|selection| selection.indices().map(|index| (selection.bank, index)))
    }

    /// How many PCRs are selected.
    pub fn count(&self) -> usize {
        self.pcrs().count()
    }

    /// Whether no PCR is selected, in whatever banks.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|selection| selection.mask == 0)
    }

    /// The selected PCRs of `bank` as a mask; zero if there are none.
    pub fn mask(&self, bank: HashAlg) -> u32 {
        self.0.iter().filter(|selection| selection.bank == bank).fold(0, |mask, selection| mask | selection.mask)
    }

    /// Whether this PCR of this bank is selected.
    pub fn contains(&self, bank: HashAlg, index: u8) -> bool {
        bit(index).is_ok_and(|bit| self.mask(bank) & bit != 0)
    }

    /// Whether both select the same PCRs of each bank and neither names a bank twice. The order of banks does not count.
    pub fn same_as(&self, other: &Self) -> bool {
        !self.has_duplicates()
            && !other.has_duplicates()
            && HashAlg::ALL.into_iter().all(|bank| self.mask(bank) == other.mask(bank))
    }

    /// What is selected here and not in `other`, in this order; for TPM2_PCR_Read, which returns eight at a time.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        let rest = |selection: &PcrSelection| PcrSelection {
            bank: selection.bank,
            mask: selection.mask & !other.mask(selection.bank),
        };
        Self(self.0.iter().map(rest).filter(|selection| selection.mask != 0).collect())
    }

    fn has_duplicates(&self) -> bool {
        // A later entry for a bank that an earlier one named.
        self.0.iter().enumerate().any(|(at, later)| self.0.iter().take(at).any(|earlier| earlier.bank == later.bank))
    }

    /// Decodes from the front of `reader`. Up to four bytes of select are accepted, PCRs above 23 are not. Entries are
    /// kept as they came, twice named banks too: [`same_as`](Self::same_as) refuses those.
    ///
    /// # Errors
    /// [`CodecError::TooLong`] above four banks or four select bytes; [`CodecError::BadValue`] for an unknown bank or PCR.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        let count = reader.u32()?;
        if usize::try_from(count).map_or(true, |count| count > MAX_PCR_BANKS) {
            return Err(CodecError::TooLong);
        }
        let mut list = Self::new();
        for _ in 0..count {
            let bank = HashAlg::decode(reader)?;
            let select_len = usize::from(reader.u8()?);
            let mut select = [0; 4];
            select.get_mut(..select_len).ok_or(CodecError::TooLong)?.copy_from_slice(reader.take(select_len)?);
            let selection = PcrSelection::new(bank, u32::from_le_bytes(select)).ok_or(CodecError::BadValue)?;
            list.0.push(selection).map_err(|_| CodecError::TooLong)?;
        }
        Ok(list)
    }

    /// Its bytes, with three bytes of select per bank.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Out::new();
        self.encode_to(&mut out);
        out.into_vec()
    }

    pub(crate) fn encode_to(&self, out: &mut Out) {
        // At most four: it fits.
        out.u32(u32::try_from(self.0.len()).unwrap_or(u32::MAX));
        for selection in &self.0 {
            let [low, middle, high, _] = selection.mask.to_le_bytes();
            out.u16(selection.bank.id()).u8(3).put(&[low, middle, high]);
        }
    }
}

/// Values of PCRs, at most one for each PCR of each bank, ascending by bank, then index.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct PcrValues(BTreeMap<(HashAlg, u8), Digest>);

impl PcrValues {
    /// No values.
    pub const fn new() -> Self {
        Self(BTreeMap::new())
    }

    /// Sets one value and returns the one before.
    ///
    /// # Errors
    /// [`PcrError::NoSuchPcr`] above 23, [`PcrError::WrongLength`] if the bank's digests are of another length.
    pub fn set(&mut self, bank: HashAlg, index: u8, value: Digest) -> Result<Option<Digest>, PcrError> {
        bit(index)?;
        if value.len() != bank.digest_len() {
            return Err(PcrError::WrongLength { bank });
        }
        Ok(self.0.insert((bank, index), value))
    }

    /// The value of one PCR.
    pub fn get(&self, bank: HashAlg, index: u8) -> Option<&Digest> {
        self.0.get(&(bank, index))
    }

    /// How many values there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All values, ascending by bank, then index.
    pub fn iter(&self) -> impl Iterator<Item = (HashAlg, u8, &Digest)> {
        self.0.iter().map(|((bank, index), digest)| (*bank, *index, digest))
    }
}

/// The PCR digest of a quote: `hash` over the selected values, bank after bank as selected, PCRs ascending.
///
/// # Errors
/// [`PcrError::Missing`] for the first selected PCR without a value, [`PcrError::Extra`] for the first value that is
/// not selected, [`PcrError::DuplicateBank`] for a bank named twice.
///
/// TPM 2.0 Part 1, "Attesting to PCR".
pub fn digest_over(selection: &PcrSelectionList, values: &PcrValues, hash: HashAlg) -> Result<Digest, PcrError> {
    let mut seen: heapless::Vec<HashAlg, MAX_PCR_BANKS> = heapless::Vec::new();
    for PcrSelection { bank, .. } in selection.iter() {
        if seen.contains(bank) {
            return Err(PcrError::DuplicateBank { bank: *bank });
        }
        seen.push(*bank).map_err(|_| PcrError::TooManyBanks)?;
    }
    let parts = selection
        .pcrs()
        .map(|(bank, index)| values.get(bank, index).map(Digest::as_bytes).ok_or(PcrError::Missing { bank, index }))
        .collect::<Result<Vec<_>, _>>()?;
    if parts.len() != values.len()
        && let Some((bank, index, _)) = values.iter().find(|(bank, index, _)| !selection.contains(*bank, *index))
    {
        return Err(PcrError::Extra { bank, index });
    }
    Ok(hash.digest(&parts))
}

/// What a PCR holds after `old` was extended by `digest`: H(old ‖ digest).
///
/// # Errors
/// [`PcrError::WrongLength`] unless both have the length of the bank's digests.
pub fn extend(bank: HashAlg, old: &Digest, digest: &Digest) -> Result<Digest, PcrError> {
    if old.len() != bank.digest_len() || digest.len() != bank.digest_len() {
        return Err(PcrError::WrongLength { bank });
    }
    Ok(bank.digest(&[old, digest]))
}

/// What TPM2_PCR_Event extends a bank by: the bank's hash of the data (TPM 2.0 Part 3, TPM2_PCR_Event).
pub fn event_digest(bank: HashAlg, data: &[u8]) -> Digest {
    bank.digest(&[data])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(entries: &[(HashAlg, u32)]) -> PcrSelectionList {
        let mut list = PcrSelectionList::new();
        for (bank, mask) in entries {
            list.push(PcrSelection::new(*bank, *mask).unwrap()).unwrap();
        }
        list
    }

    #[test]
    fn selection_bytes_are_the_tpms() {
        let selection = list(&[(HashAlg::Sha1, 1), (HashAlg::Sha256, 0x80_04_81)]);
        let bytes = [0, 0, 0, 2, 0, 4, 3, 1, 0, 0, 0, 0xb, 3, 0x81, 0x04, 0x80];
        assert_eq!(selection.encode(), bytes);
        assert_eq!(PcrSelectionList::decode(&mut Reader::new(&bytes)), Ok(selection.clone()));
        assert_eq!(
            selection.pcrs().collect::<Vec<_>>(),
            [
                (HashAlg::Sha1, 0),
                (HashAlg::Sha256, 0),
                (HashAlg::Sha256, 7),
                (HashAlg::Sha256, 10),
                (HashAlg::Sha256, 23)
            ]
        );
        for len in 0..bytes.len() {
            assert_eq!(PcrSelectionList::decode(&mut Reader::new(&bytes[..len])), Err(CodecError::Truncated));
        }
    }

    #[test]
    fn selections_that_no_tpm_of_ours_makes_are_refused() {
        let decode = |bytes: &[u8]| PcrSelectionList::decode(&mut Reader::new(bytes)).unwrap_err();
        assert_eq!(decode(&[0, 0, 0, 5]), CodecError::TooLong);
        assert_eq!(decode(&[0, 0, 0, 1, 0, 0xb, 5, 0, 0, 0, 0, 0]), CodecError::TooLong);
        assert_eq!(decode(&[0, 0, 0, 1, 0, 0xb, 4, 0, 0, 0, 1]), CodecError::BadValue);
        assert_eq!(decode(&[0, 0, 0, 1, 0, 0x12, 3, 0, 0, 0]), CodecError::BadValue);
        let four_bytes = PcrSelectionList::decode(&mut Reader::new(&[0, 0, 0, 1, 0, 0xb, 4, 1, 0, 0, 0])).unwrap();
        assert!(four_bytes.same_as(&list(&[(HashAlg::Sha256, 1)])));
    }

    #[test]
    fn equal_selections_ignore_order_and_never_accept_duplicates() {
        let one = list(&[(HashAlg::Sha1, 1), (HashAlg::Sha256, 6)]);
        assert!(one.same_as(&list(&[(HashAlg::Sha256, 6), (HashAlg::Sha1, 1)])));
        assert!(one.same_as(&list(&[(HashAlg::Sha256, 6), (HashAlg::Sha1, 1), (HashAlg::Sha384, 0)])));
        assert!(!one.same_as(&list(&[(HashAlg::Sha256, 6)])));
        assert!(!one.same_as(&list(&[(HashAlg::Sha256, 7), (HashAlg::Sha1, 1)])));
        let twice = [0, 0, 0, 2, 0, 0xb, 3, 2, 0, 0, 0, 0xb, 3, 4, 0, 0];
        let twice = PcrSelectionList::decode(&mut Reader::new(&twice)).unwrap();
        assert!(!twice.same_as(&list(&[(HashAlg::Sha256, 6)])) && !twice.same_as(&twice));
        assert_eq!(
            digest_over(&twice, &PcrValues::new(), HashAlg::Sha256),
            Err(PcrError::DuplicateBank { bank: HashAlg::Sha256 })
        );
    }

    #[test]
    fn a_missing_and_an_extra_value_are_told_apart() {
        let selection = list(&[(HashAlg::Sha256, 0b101)]);
        let mut values = PcrValues::new();
        let value = HashAlg::Sha256.digest(&[b"x"]);
        values.set(HashAlg::Sha256, 0, value).unwrap();
        let bank = HashAlg::Sha256;
        assert_eq!(digest_over(&selection, &values, bank), Err(PcrError::Missing { bank, index: 2 }));
        values.set(bank, 2, Digest::zero(bank)).unwrap();
        assert_eq!(digest_over(&selection, &values, bank), Ok(bank.digest(&[&value, &[0; 32]])));
        values.set(bank, 7, value).unwrap();
        assert_eq!(digest_over(&selection, &values, bank), Err(PcrError::Extra { bank, index: 7 }));
        assert_eq!(values.set(bank, 24, value), Err(PcrError::NoSuchPcr { index: 24 }));
        assert_eq!(values.set(HashAlg::Sha1, 1, value), Err(PcrError::WrongLength { bank: HashAlg::Sha1 }));
    }

    #[test]
    fn order_of_banks_is_part_of_the_digest() {
        let mut values = PcrValues::new();
        values.set(HashAlg::Sha1, 0, HashAlg::Sha1.digest(&[])).unwrap();
        values.set(HashAlg::Sha256, 0, HashAlg::Sha256.digest(&[])).unwrap();
        let digest = |selection| digest_over(&selection, &values, HashAlg::Sha256).unwrap();
        assert_ne!(
            digest(list(&[(HashAlg::Sha1, 1), (HashAlg::Sha256, 1)])),
            digest(list(&[(HashAlg::Sha256, 1), (HashAlg::Sha1, 1)]))
        );
    }

    #[test]
    fn what_was_read_is_taken_off_the_list() {
        let wanted = list(&[(HashAlg::Sha1, 3), (HashAlg::Sha256, 7)]);
        assert_eq!(wanted.without(&list(&[(HashAlg::Sha1, 3), (HashAlg::Sha256, 1)])), list(&[(HashAlg::Sha256, 6)]));
        assert!(wanted.without(&wanted).is_empty());
    }

    #[test]
    fn extending_takes_digests_of_the_bank_only() {
        let bank = HashAlg::Sha1;
        assert_eq!(
            extend(bank, &Digest::zero(bank), &event_digest(bank, b"a")),
            Ok(bank.digest(&[&[0; 20], &bank.digest(&[b"a"])]))
        );
        let sha256 = HashAlg::Sha256.digest(&[]);
        assert_eq!(extend(bank, &Digest::zero(bank), &sha256), Err(PcrError::WrongLength { bank }));
    }
}
