//! What is done once, before the first connection: randomness, the TPM's identity, the pins' place in the phase PCR.

use std::fs;

use protocol::{
    crypto::{
        manifest::{DELIVERED_EVENT, ManifestError, TenantPublicKey, pins_event},
        nk::Nk,
    },
    message::enrol::Wants,
    tpm::{
        alg::Digest,
        pcr::{PcrError, PcrSelection, PcrSelectionList, PcrValues, event_digest, extend},
    },
};
use rand_core::RngCore as _;
use zeroize::Zeroizing;

use crate::{
    config::Settings,
    entropy::{KERNEL_WAIT, Kernel, NoEntropy, Rng},
    log,
    payload::{PayloadDir, Placed},
    tpm::{Identity, Tpm, TpmError},
    x509::{self, PemError},
};

/// A machine that is ready to connect.
pub(crate) struct Booted {
    pub(crate) tpm: Box<dyn Tpm>,
    pub(crate) identity: Identity,
    pub(crate) tenant_keys: Vec<TenantPublicKey>,
    pub(crate) rng: Rng,
    pub(crate) home: PayloadDir,
    /// What is in place already in this boot.
    pub(crate) placed: Option<Placed>,
}

/// Why the machine is not ready.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    #[error("the TPM: {0}")]
    Tpm(#[from] TpmError),
    #[error("{0}")]
    Entropy(#[from] NoEntropy),
    #[error("tenant-key {path}: {why}", path = .0.display(), why = .1)]
    TenantKeyFile(std::path::PathBuf, std::io::Error),
    #[error("tenant-key {path}: {why}", path = .0.display(), why = .1)]
    TenantKey(std::path::PathBuf, PemError),
    #[error("the tenant keys: {0}")]
    Pins(#[from] ManifestError),
    #[error("the TPM's PCRs: {0}")]
    Pcr(#[from] PcrError),
}

/// How far this boot has come, by the phase PCR.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Phase {
    /// Nothing was extended.
    Fresh,
    /// Our pins.
    Pinned,
    /// Our pins, then "delivered".
    Delivered,
    /// Something that is not ours.
    Foreign,
}

impl Booted {
    /// Gets ready. Extends the pins into the phase PCR, unless they are there.
    ///
    /// # Errors
    /// [`BootError`]; what was done stays done, and is found by the next try.
    pub(crate) fn up(settings: &Settings) -> Result<Self, BootError> {
        let tenant_keys = read_tenant_keys(settings)?;
        let kernel = Kernel::gather(KERNEL_WAIT);
        if !kernel.is_ready() {
            log::warn!("the kernel's random pool is not ready after 30 s: the TPM's generator is relied on");
        }
        let mut tpm = crate::tpm::open(&settings.tcti, Rng::provisional(&kernel));
        let identity = tpm.identity(settings.ek)?;
        log::info!("this machine is node {} (EK {})", identity.node_id, identity.ek.name());
        if identity.ek_chain.is_empty() {
            log::warn!(
                "the TPM has no EK certificate: the tenant has to know this node id, or accept unproven hardware"
            );
        }
        let tpm_bytes = tpm.random()?;
        let rng = Rng::new(&kernel, Some(&tpm_bytes))?;
        if !kernel.is_ready() {
            tpm.set_rng(Rng::new(&kernel, Some(&tpm_bytes))?);
        }
        let home = PayloadDir::new(&settings.payload_dir);
        home.clean();
        let mut booted = Self { tpm, identity, tenant_keys, rng, home, placed: None };
        booted.enter_phase(settings)?;
        Ok(booted)
    }

    /// A new NK: nobody can guess it, and no clone of this image makes the same.
    pub(crate) fn new_nk(&mut self) -> Result<Nk, TpmError> {
        let mut system = Zeroizing::new([0; 32]);
        self.rng.fill_bytes(&mut *system);
        Ok(Nk::from_seeds(&system, &*self.tpm.random()?))
    }

    /// The payload is in place: says so in the phase PCR.
    pub(crate) fn extend_delivered(&mut self, settings: &Settings) -> Result<(), TpmError> {
        self.tpm.pcr_event(settings.phase_pcr, DELIVERED_EVENT)
    }

    /// Brings the phase PCR and what is in place together: a restart may lie anywhere in between.
    pub(crate) fn enter_phase(&mut self, settings: &Settings) -> Result<(), BootError> {
        self.placed = self.home.existing();
        if self.tenant_keys.is_empty() {
            return Ok(()); // attestation only: nothing decides whose code runs
        }
        let pins = pins_event(&self.tenant_keys, settings.autorun)?;
        match read_phase(&mut *self.tpm, settings.phase_pcr, &pins)? {
            Phase::Fresh => {
                self.placed = None; // of another boot, by a directory that outlived it
                self.home.forget();
                self.tpm.pcr_event(settings.phase_pcr, &pins)?;
                log::debug!("the pins are measured into PCR {}", settings.phase_pcr);
            }
            Phase::Pinned if self.placed.is_some() => {
                log::info!("the payload was put in place before a restart; saying so in PCR {}", settings.phase_pcr);
                self.extend_delivered(settings)?;
            }
            Phase::Pinned => {}
            Phase::Delivered if self.placed.is_none() && settings.wants == Wants::Payload => log::warn!(
                "PCR {} says that this boot's payload was delivered, but it is not at {}: it is not given twice, restart the machine",
                settings.phase_pcr,
                self.home.path().display()
            ),
            Phase::Delivered => {}
            Phase::Foreign => log::warn!(
                "PCR {} was extended by something else than this agent with these settings: no payload will be released",
                settings.phase_pcr
            ),
        }
        Ok(())
    }
}

/// Reads the phase PCR in every bank.
pub(crate) fn read_phase(tpm: &mut dyn Tpm, index: u8, pins: &[u8]) -> Result<Phase, BootError> {
    let mut selection = PcrSelectionList::new();
    for bank in tpm.about()?.banks.iter() {
        selection.push(PcrSelection::from_indices(bank.bank, [index])?)?;
    }
    let values = tpm.pcr_read(&selection)?;
    Ok(phase_of(&values, pins)?)
}

fn phase_of(values: &PcrValues, pins: &[u8]) -> Result<Phase, PcrError> {
    let mut phase = None;
    for (bank, _, value) in values.iter() {
        let zero = Digest::zero(bank);
        let pinned = extend(bank, &zero, &event_digest(bank, pins))?;
        let delivered = extend(bank, &pinned, &event_digest(bank, DELIVERED_EVENT))?;
        let here = match value {
            value if *value == zero => Phase::Fresh,
            value if *value == pinned => Phase::Pinned,
            value if *value == delivered => Phase::Delivered,
            _ => Phase::Foreign,
        };
        if phase.is_some_and(|phase| phase != here) {
            return Ok(Phase::Foreign);
        }
        phase = Some(here);
    }
    Ok(phase.unwrap_or(Phase::Foreign))
}

/// Reads the pinned keys; the same key twice counts once.
pub(crate) fn read_tenant_keys(settings: &Settings) -> Result<Vec<TenantPublicKey>, BootError> {
    let mut keys = Vec::new();
    for path in &settings.tenant_keys {
        let pem = fs::read_to_string(path).map_err(|why| BootError::TenantKeyFile(path.clone(), why))?;
        let sec1 = x509::parse_spki_p256(&pem).map_err(|why| BootError::TenantKey(path.clone(), why))?;
        let key = TenantPublicKey::from_sec1(&sec1).ok_or(BootError::Pins(ManifestError::BadPins))?;
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use protocol::tpm::alg::HashAlg;

    use super::*;

    fn values(of: impl Fn(HashAlg) -> Digest) -> PcrValues {
        let mut values = PcrValues::new();
        for bank in [HashAlg::Sha1, HashAlg::Sha256] {
            values.set(bank, 13, of(bank)).unwrap();
        }
        values
    }

    fn after(bank: HashAlg, events: &[&[u8]]) -> Digest {
        events.iter().fold(Digest::zero(bank), |old, data| extend(bank, &old, &event_digest(bank, data)).unwrap())
    }

    #[test]
    fn the_phase_is_read_from_every_bank() {
        let pins = b"pins".as_slice();
        assert_eq!(phase_of(&values(Digest::zero), pins), Ok(Phase::Fresh));
        assert_eq!(phase_of(&values(|bank| after(bank, &[pins])), pins), Ok(Phase::Pinned));
        assert_eq!(phase_of(&values(|bank| after(bank, &[pins, DELIVERED_EVENT])), pins), Ok(Phase::Delivered));
        assert_eq!(phase_of(&values(|bank| after(bank, &[b"other"])), pins), Ok(Phase::Foreign));
        // One bank extended alone is nobody's event.
        let mixed = values(|bank| if bank == HashAlg::Sha1 { Digest::zero(bank) } else { after(bank, &[pins]) });
        assert_eq!(phase_of(&mixed, pins), Ok(Phase::Foreign));
    }
}
