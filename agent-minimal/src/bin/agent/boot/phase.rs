//! The phase PCR: it takes the pins before the first connection, and "delivered" when the payload is in place.
//!
//! It is what makes pins from anywhere, the kernel's command line included, safe to take: a control plane that expects
//! other pins releases nothing. So there is no setting that turns it off, and [`Measured`] is needed to connect.

use protocol::{
    crypto::manifest::{DELIVERED_EVENT, TenantPublicKey, pins_event},
    message::enrol::Wants,
    tpm::{
        alg::Digest,
        pcr::{PcrError, PcrSelection, PcrSelectionList, PcrValues, event_digest, extend},
    },
};

use super::BootError;
use crate::{
    config::Settings,
    log,
    payload::{PayloadDir, Placed},
    tpm::Tpm,
};

/// The pins are in the phase PCR, or there are none. Only [`enter`] makes one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    delivered: bool,
}

impl Measured {
    /// Whether the PCR says that this boot's payload was put in place under these pins.
    pub(crate) const fn says_delivered(self) -> bool {
        self.delivered
    }
}

/// How far this boot has come, by the phase PCR.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Phase {
    /// Nothing was extended.
    Fresh,
    /// Our pins.
    Pinned,
    /// Our pins, then "delivered".
    Delivered,
    /// Something that is not ours.
    Foreign,
}

/// Brings the phase PCR and what is in place together: a restart may lie anywhere in between. Gives what is in place.
///
/// # Errors
/// The TPM's; what was done stays done, and is found by the next try.
pub(super) fn enter(
    tpm: &mut dyn Tpm,
    settings: &Settings,
    tenant_keys: &[TenantPublicKey],
    home: &PayloadDir,
) -> Result<(Measured, Option<Placed>), BootError> {
    let index = settings.phase_pcr;
    let mut placed = home.existing();
    if tenant_keys.is_empty() {
        // Attestation only: nothing decides whose code runs.
        return Ok((Measured { delivered: false }, placed));
    }
    let pins = pins_event(tenant_keys, settings.autorun)?;
    let phase = read_phase(tpm, index, &pins)?;
    let mut delivered = false;
    match (phase, placed) {
        (Phase::Fresh, _) => {
            placed = None; // of another boot, by a directory that outlived it
            home.forget();
            tpm.pcr_event(index, &pins)?;
            log::debug!("the pins are measured into PCR {index}");
        }
        (Phase::Pinned, Some(_)) => {
            log::info!("the payload was put in place before a restart; saying so in PCR {index}");
            home.link_disk_keys();
            tpm.pcr_event(index, DELIVERED_EVENT)?;
            delivered = true;
        }
        (Phase::Pinned, None) => {}
        (Phase::Delivered, None) if settings.wants == Wants::Payload => log::warn!(
            "PCR {index} says that this boot's payload was delivered, but it is not at {}: it is not given twice, restart the machine",
            home.path().display()
        ),
        (Phase::Delivered, _) => delivered = true,
        (Phase::Foreign, _) if settings.wants == Wants::Attest => log::warn!(
            "PCR {index} does not hold these settings' pins: this boot began with other tenant keys or another autorun, or something else extended it"
        ),
        (Phase::Foreign, _) => log::warn!(
            "PCR {index} was extended by something else than this agent with these settings: no payload will be released"
        ),
    }
    Ok((Measured { delivered }, placed))
}

/// Reads the phase PCR in every bank.
fn read_phase(tpm: &mut dyn Tpm, index: u8, pins: &[u8]) -> Result<Phase, BootError> {
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use protocol::{
        crypto::{container, manifest::TenantSigningKey},
        id::SealingId,
        tpm::alg::HashAlg,
    };
    use rand_core::OsRng;

    use super::*;
    use crate::{
        sys::{self, FileSystem},
        tpm::direct::tests::{direct, swtpm},
    };

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

    /// A payload with a disk key, as an earlier process left it.
    fn put_in_place(home: &PayloadDir) {
        let key = container::File { path: "cryptsetup/root.key", executable: false, bytes: b"k" };
        let plaintext = container::write_container(&[key]).unwrap();
        let mut incoming = home.begin(SealingId([7; 16]), plaintext.len() as u64).unwrap();
        incoming.write(&plaintext).unwrap();
        incoming.place(&[9; 32], false).unwrap();
    }

    #[test]
    fn a_restart_anywhere_finds_what_is_in_place_and_another_boot_finds_nothing() {
        let shm = Path::new("/dev/shm");
        if !matches!(sys::file_system(shm), Ok((FileSystem::Tmpfs, _))) {
            println!("skipped: no tmpfs at /dev/shm");
            return;
        }
        let Some(swtpm) = swtpm(false) else { return };
        let mut tpm = direct(&swtpm);
        let scratch = tempfile::tempdir_in(shm).unwrap();
        let settings = Settings {
            payload_dir: scratch.path().join("payload"),
            keys_dir: scratch.path().join("keys.d"),
            ..Settings::default()
        };
        let (home, keys) = (settings.payload_home(), [TenantSigningKey::generate(&mut OsRng).public()]);
        let link = settings.keys_dir.join("root.key");
        let mut enter = || {
            let (measured, placed) = enter(&mut tpm, &settings, &keys, &home).unwrap();
            let pins = pins_event(&keys, settings.autorun).unwrap();
            (measured.says_delivered(), placed.is_some(), read_phase(&mut tpm, settings.phase_pcr, &pins).unwrap())
        };

        // A directory that outlived its boot.
        put_in_place(&home);
        assert!(link.is_symlink());
        assert_eq!(enter(), (false, false, Phase::Pinned));
        assert!(home.existing().is_none() && !link.is_symlink());
        assert_eq!(enter(), (false, false, Phase::Pinned));

        // An end between the renaming and the link, or the phase PCR.
        put_in_place(&home);
        std::fs::remove_file(&link).unwrap();
        assert_eq!(enter(), (true, true, Phase::Delivered));
        assert!(link.is_symlink());
        assert_eq!(enter(), (true, true, Phase::Delivered));

        // It was delivered, and is gone.
        std::fs::remove_dir_all(home.path()).unwrap();
        assert_eq!(enter(), (false, false, Phase::Delivered));
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
