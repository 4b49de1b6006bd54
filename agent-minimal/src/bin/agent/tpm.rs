//! What the agent asks of a TPM, whichever way it is reached.
//!
//! No connection is held between two uses: a call connects, does all that belongs together, and lets go.
//!
//! A build without features has one backend, [`direct`]. One with the feature `tss-esapi` reaches every TPM through the
//! system's TSS (module `esapi`), whatever the `tcti` setting says, and takes that library's other ways to a TPM too
//! (`tabrmd`, `mssim:host=…,port=…`).

#[cfg_attr(feature = "tss-esapi", allow(dead_code, reason = "there it is the other backend's test oracle"))]
pub(crate) mod direct;
#[cfg(feature = "tss-esapi")]
pub(crate) mod esapi;

use std::{io, path::PathBuf, time::Duration};

use protocol::{
    crypto::secret::CredentialSecret,
    id::NodeId,
    tpm::{
        alg::TpmRc,
        command::ResponseError,
        pcr::{PcrSelectionList, PcrValues},
        session::SessionError,
        template::EkTemplate,
    },
};
use zeroize::Zeroizing;

use crate::{config::Tcti, entropy::Rng};

/// A TPM, with the keys the agent makes in it.
pub(crate) trait Tpm {
    /// Finds the EK (the kind given, else the first that has a certificate, else P-256 without one), makes the AK, and
    /// says who this machine is. Comes before [`activate`](Self::activate), [`quote`](Self::quote) and
    /// [`random`](Self::random).
    ///
    /// # Errors
    /// [`TpmError`].
    fn identity(&mut self, ek: Option<EkTemplate>) -> Result<Identity, TpmError>;

    /// TPM2_ActivateCredential with the EK and the AK of [`identity`](Self::identity).
    ///
    /// # Errors
    /// [`TpmError::NotForUs`] for a credential that was made for other keys.
    fn activate(&mut self, id_object: &[u8], encrypted_secret: &[u8]) -> Result<CredentialSecret, TpmError>;

    /// TPM2_Quote with the AK, and the values its digest covers: asked again until both belong together.
    ///
    /// # Errors
    /// [`TpmError::Unstable`] if PCRs were extended between quote and reading each time.
    fn quote(&mut self, selection: &PcrSelectionList, qualifying_data: &[u8; 32]) -> Result<Quote, TpmError>;

    /// The values of all selected PCRs.
    ///
    /// # Errors
    /// [`TpmError`].
    fn pcr_read(&mut self, selection: &PcrSelectionList) -> Result<PcrValues, TpmError>;

    /// TPM2_PCR_Event: extends the PCR in every bank.
    ///
    /// # Errors
    /// [`TpmError`].
    fn pcr_event(&mut self, index: u8, data: &[u8]) -> Result<(), TpmError>;

    /// 32 bytes of the TPM's generator, encrypted on their way.
    ///
    /// # Errors
    /// [`TpmError`].
    fn random(&mut self) -> Result<Zeroizing<[u8; 32]>, TpmError>;

    /// Whose TPM it is, and which banks of PCRs it has.
    ///
    /// # Errors
    /// [`TpmError`].
    fn about(&mut self) -> Result<About, TpmError>;

    /// Replaces the generator of the sessions' salts and nonces, once there is a better one than at the start.
    fn set_rng(&mut self, rng: Rng);

    /// Time spent in the TPM, and on the way to it, since the start.
    fn spent(&self) -> Duration;
}

/// Names the TPM that the settings lead to; it is not touched yet. `rng` makes the sessions' salts and nonces.
#[cfg(not(feature = "tss-esapi"))]
pub(crate) fn open(tcti: &Tcti, rng: Rng) -> Box<dyn Tpm> {
    Box::new(direct::Direct::new(tcti.clone(), rng))
}

/// Names the TPM that the settings lead to; it is not touched yet. The TSS makes its sessions' salts and nonces itself.
#[cfg(feature = "tss-esapi")]
pub(crate) fn open(tcti: &Tcti, _rng: Rng) -> Box<dyn Tpm> {
    Box::new(esapi::Esapi::new(tcti.clone()))
}

/// Who this machine is, by its TPM.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    /// From the EK's public key.
    pub(crate) node_id: NodeId,
    /// Which kind of EK it is.
    pub(crate) ek: EkTemplate,
    /// TPMT_PUBLIC of the EK.
    pub(crate) ek_public: Vec<u8>,
    /// DER: the EK's certificate first, then what the TPM holds of its chain. Empty if there is no certificate.
    pub(crate) ek_chain: Vec<Vec<u8>>,
    /// TPMT_PUBLIC of the AK.
    pub(crate) ak_public: Vec<u8>,
    /// Name of the AK: 000b and a SHA-256.
    pub(crate) ak_name: [u8; 34],
}

/// A quote with its values.
#[derive(Clone, Debug)]
pub(crate) struct Quote {
    /// TPMS_ATTEST as the TPM signed it.
    pub(crate) attested: Vec<u8>,
    /// TPMT_SIGNATURE.
    pub(crate) signature: Vec<u8>,
    /// The values that hash to the quoted digest.
    pub(crate) values: PcrValues,
}

/// What a TPM says of itself.
#[derive(Clone, Debug)]
pub(crate) struct About {
    /// TPM_PT_MANUFACTURER: four letters, padded with NUL or blanks.
    pub(crate) manufacturer: [u8; 4],
    /// TPM_PT_FIRMWARE_VERSION_1 and _2.
    pub(crate) firmware_version: u64,
    /// Banks with the PCRs that are allocated in them.
    pub(crate) banks: PcrSelectionList,
}

impl About {
    /// The manufacturer's letters; what is not printable is left out.
    pub(crate) fn manufacturer_name(&self) -> String {
        self.manufacturer.iter().map(|byte| char::from(*byte)).filter(char::is_ascii_graphic).collect()
    }
}

/// Why the TPM did not do it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TpmError {
    /// Nothing there.
    #[error(
        "there is no TPM at {path}: is it turned on in the firmware, is its driver loaded? (setting tcti)",
        path = .0.display()
    )]
    Missing(PathBuf),
    /// Not allowed.
    #[error("the TPM at {path} may not be opened: the agent has to run as root, or in its group", path = .0.display())]
    NotAllowed(PathBuf),
    /// Taken.
    #[error("the TPM is in use by another program")]
    Busy,
    /// Not there, over TCP.
    #[error("the TPM at {0} cannot be reached: {1}")]
    Unreachable(String, io::Error),
    /// On the way.
    #[error("the way to the TPM broke: {0}")]
    Broken(#[from] io::Error),
    /// Without TPM2_Startup.
    #[error("the TPM was not started by the firmware (TPM2_Startup)")]
    NotStarted,
    /// Dictionary protection.
    #[error("the TPM is locked out after failed authorisations; wait, or `tpm2_dictionarylockout -c`")]
    LockedOut,
    /// The TPM's word.
    #[error("{what}: the TPM refused with {rc}")]
    Refused {
        /// Which command.
        what: &'static str,
        /// Why.
        rc: TpmRc,
    },
    /// Not an answer.
    #[error("{what}: {why}")]
    Answer {
        /// To which command.
        what: &'static str,
        /// What about it.
        why: ResponseError,
    },
    /// The session.
    #[error("the encrypted session with the TPM failed: {0}")]
    Session(SessionError),
    /// Too long for a command.
    #[error("{0}: the data is longer than the TPM takes")]
    TooLong(&'static str),
    /// A credential for somebody else.
    #[error("the credential was not made for this TPM's keys")]
    NotForUs,
    /// PCRs in motion.
    #[error("PCRs change faster than they can be quoted")]
    Unstable,
    /// No keys yet.
    #[error("the TPM was not asked for its identity yet")]
    NoIdentity,
    /// Too few bytes.
    #[error("the TPM gave fewer random bytes than it was asked for")]
    TooFewRandomBytes,
    /// Not a way that the TSS knows.
    #[cfg(feature = "tss-esapi")]
    #[error("tcti `{0}` is none of device:PATH, swtpm:host=…,port=…, mssim:host=…,port=… and tabrmd")]
    UnknownTcti(String),
    /// The system's TSS, by a layer above the TPM.
    #[cfg(feature = "tss-esapi")]
    #[error("{what}: the system's TSS failed with 0x{code:08x} (tpm2_rc_decode explains it)")]
    Stack {
        /// Which command.
        what: &'static str,
        /// TSS2_RC: the layer in bits 16 to 23, its code below.
        code: u32,
    },
    /// The Rust interface of the TSS.
    #[cfg(feature = "tss-esapi")]
    #[error("{what}: {kind}")]
    Wrapper {
        /// Which command.
        what: &'static str,
        /// Why.
        kind: tss_esapi::WrapperErrorKind,
    },
    /// None of ours.
    #[error("the TPM makes none of the attestation keys that are known here")]
    NoAttestationKey,
}

impl TpmError {
    /// The TPM's response code, where there is one.
    pub(crate) const fn rc(&self) -> Option<TpmRc> {
        match self {
            Self::Refused { rc, .. } => Some(*rc),
            Self::NotStarted => Some(TpmRc::INITIALIZE),
            Self::LockedOut => Some(TpmRc::LOCKOUT),
            _ => None,
        }
    }
}
