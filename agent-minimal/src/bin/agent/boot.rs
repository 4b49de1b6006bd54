//! What is done once, before the first connection: randomness, the TPM's identity, and the pins' place in the phase PCR
//! ([`phase`]).

mod phase;

use std::fs;

use protocol::{
    crypto::{
        manifest::{DELIVERED_EVENT, ManifestError, TenantPublicKey},
        nk::Nk,
    },
    tpm::pcr::PcrError,
};
use rand_core::RngCore as _;
use zeroize::Zeroizing;

use self::phase::Measured;
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
    /// The pins are in the phase PCR: without this there is no machine that is ready to connect.
    pub(crate) measured: Measured,
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
        let home = settings.payload_home();
        home.clean();
        let (measured, placed) = phase::enter(&mut *tpm, settings, &tenant_keys, &home)?;
        Ok(Self { tpm, identity, tenant_keys, rng, home, placed, measured })
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

    /// Brings the phase PCR and what is in place together, once more: a session may have ended anywhere in between.
    ///
    /// # Errors
    /// As [`up`](Self::up).
    pub(crate) fn enter_phase(&mut self, settings: &Settings) -> Result<(), BootError> {
        (self.measured, self.placed) = phase::enter(&mut *self.tpm, settings, &self.tenant_keys, &self.home)?;
        Ok(())
    }
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
