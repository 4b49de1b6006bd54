//! The values behind a quote's PCR digest: completed from what is remembered, then proven by the digest.

use protocol::{
    message::attest::{BankSelection, PcrValueList, Selection},
    tpm::{
        alg::{Digest, HashAlg},
        pcr::{PcrError, PcrSelectionList, PcrValues, digest_over},
    },
};

use super::quote::{QuoteError, VerifiedQuote};

/// The selection as a challenge carries it.
pub fn selection_to_wire(selection: &PcrSelectionList) -> Selection {
    // Both lists hold at most one entry for each of four banks.
    selection.iter().map(|bank| BankSelection { bank: bank.bank.id(), mask: bank.mask() }).collect()
}

/// PCR values that hash to a verified quote's digest: every selected PCR, and no other. Only
/// [`complete`](Self::complete) and [`of_values`](Self::of_values) make them.
#[derive(Clone, Debug)]
pub struct QuotedPcrs {
    values: PcrValues,
    quote: VerifiedQuote,
}

impl QuotedPcrs {
    /// Completes the evidence's values and checks them against the quote.
    ///
    /// With `from_base`, the evidence holds only what differs from `base`, the values this role remembers as
    /// (TPM_ALG_ID, index, digest); those of `base` that were not quoted now are left out. Without it `base` is not
    /// looked at.
    ///
    /// # Errors
    /// [`QuoteError::NoBase`] if `from_base` and nothing is remembered; [`QuoteError::WrongPcrs`] for a missing value or
    /// one that was not quoted, [`QuoteError::DuplicateValue`]; [`QuoteError::WrongPcrDigest`] if the values hash to
    /// another digest (after a base: it may be another than the agent's; ask again without).
    pub fn complete(
        quote: &VerifiedQuote,
        base: Option<&[(u16, u8, Vec<u8>)]>,
        pcrs: &PcrValueList,
        from_base: bool,
    ) -> Result<Self, QuoteError> {
        let attest = quote.attest();
        let selected = |bank, index| attest.pcr_select.contains(bank, index);
        let mut values = PcrValues::new();
        if from_base {
            for (bank, index, digest) in base.ok_or(QuoteError::NoBase)? {
                let bank = known_bank(*bank)?;
                if selected(bank, *index) {
                    values.set(bank, *index, bank.read_digest(digest)?)?;
                }
            }
        }
        let mut given = PcrSelectionMask::default();
        for value in pcrs {
            let (bank, index) = (known_bank(value.bank)?, value.index);
            if !selected(bank, index) {
                return Err(PcrError::Extra { bank, index }.into());
            }
            if !given.insert(bank, index) {
                return Err(QuoteError::DuplicateValue { bank, index });
            }
            values.set(bank, index, bank.read_digest(&value.digest)?)?;
        }
        if digest_over(&attest.pcr_select, &values, quote.pcr_hash())? != attest.pcr_digest {
            return Err(QuoteError::WrongPcrDigest);
        }
        Ok(Self { values, quote: quote.clone() })
    }

    /// Checks a whole set of values against the quote.
    ///
    /// # Errors
    /// [`PcrError`] for a missing value, one that was not quoted, or a bank quoted twice; `Ok(None)` if they hash to
    /// another digest.
    pub fn of_values(quote: &VerifiedQuote, values: &PcrValues) -> Result<Option<Self>, PcrError> {
        let attest = quote.attest();
        let digest = digest_over(&attest.pcr_select, values, quote.pcr_hash())?;
        Ok((digest == attest.pcr_digest).then(|| Self { values: values.clone(), quote: quote.clone() }))
    }

    /// The value of a PCR; `None` if it was not quoted.
    pub fn value(&self, bank: HashAlg, index: u8) -> Option<&Digest> {
        self.values.get(bank, index)
    }

    /// All values, ascending by bank, then index.
    pub fn iter(&self) -> impl Iterator<Item = (HashAlg, u8, &Digest)> {
        self.values.iter()
    }

    /// The quoted banks, in the quote's order; each selects at least one PCR.
    pub fn banks(&self) -> impl Iterator<Item = HashAlg> {
        self.quote.attest().pcr_select.iter().filter(|bank| bank.mask() != 0).map(|bank| bank.bank)
    }

    /// PCR 10 of each bank in which it was quoted: what an IMA list has to replay to.
    pub fn ima_targets(&self) -> impl Iterator<Item = (HashAlg, Digest)> {
        self.values.iter().filter(|(_, index, _)| *index == super::IMA_PCR).map(|(bank, _, value)| (bank, *value))
    }

    /// The values as they are remembered: (TPM_ALG_ID, index, digest), ascending.
    pub fn to_checkpoint(&self) -> Vec<(u16, u8, Vec<u8>)> {
        self.values.iter().map(|(bank, index, value)| (bank.id(), index, value.to_vec())).collect()
    }

    /// The quote they belong to.
    pub const fn quote(&self) -> &VerifiedQuote {
        &self.quote
    }
}

fn known_bank(id: u16) -> Result<HashAlg, QuoteError> {
    HashAlg::from_id(id).ok_or(QuoteError::UnknownBank(id))
}

/// Which PCRs were seen, one mask per bank.
#[derive(Default)]
struct PcrSelectionMask([u32; HashAlg::ALL.len()]);

impl PcrSelectionMask {
    /// False if it was there. `index` is one that is selected: below 24.
    fn insert(&mut self, bank: HashAlg, index: u8) -> bool {
        let bit = 1u32.checked_shl(u32::from(index)).unwrap_or(0);
        for (mask, of) in self.0.iter_mut().zip(HashAlg::ALL) {
            if of == bank {
                let new = *mask & bit == 0;
                *mask |= bit;
                return new;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests;
