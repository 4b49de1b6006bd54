//! Appraisal of files: whatever was given of a machine (quote, key, PCR values, logs, certificates, policy), from anybody's
//! TPM, judged together; what was not given is named as not checked. The `appraise` command reads the files and prints
//! what comes out.
//!
//! It says what was found, never whether a share may leave: a pass here is that no check failed. What only our own nodes
//! must meet is asked with [`Files::node_rules`].

mod logs;
mod report;

use protocol::tpm::{
    alg::{Digest, HashAlg},
    attest::{AttestError, TpmsAttest},
    pcr::{PcrError, PcrSelectionList, PcrValues, digest_over},
    public::{ObjectAttributes, TpmtPublic},
    template::{AK_ATTRIBUTES, AkTemplateError, TPM_RH_ENDORSEMENT, check_ak},
};
use serde::Deserialize;

use self::logs::Logs;
pub use self::report::{FilesVerdict, InputError, Outcome, Row, Where};
use super::{
    FIRMWARE_PCRS,
    continuity::{Epoch, attest_continuity},
    finding::{Check, Finding, Place, Report},
    pcr_file::{PcrFile, PcrFileError, json_offset},
    policy::{Exception, Policy, PolicyError, PolicyTrust, ReleaseRule, dsse::P256Key},
    quote::attest_code,
    signature::{AttestationKey, PublicArea, TpmSignature},
};
use crate::{
    ek::{EkRoots, certificate_spki},
    store::Checkpoint,
};

/// Qualifying data: what a TPM2B_DATA can hold is 66 bytes; longer can never be equal.
const MAX_QUALIFYING_DATA_LEN: usize = 1024;

/// What there is to judge; each is optional. Bytes are files as they came.
#[derive(Clone, Copy, Debug, Default)]
pub struct Files<'a> {
    /// TPMS_ATTEST.
    pub quote: Option<&'a [u8]>,
    /// TPMT_SIGNATURE.
    pub signature: Option<&'a [u8]>,
    /// The attestation key, in any form that [`AttestationKey::from_bytes`] reads.
    pub ak: Option<&'a [u8]>,
    /// The qualifying data that was asked for.
    pub qualifying_data: Option<&'a [u8]>,
    /// PCR values, in any form that [`PcrFile::parse`] reads.
    pub pcrs: Option<&'a [u8]>,
    /// The firmware's event log.
    pub boot_log: Option<&'a [u8]>,
    /// The kernel's IMA list, binary or ASCII.
    pub ima: Option<&'a [u8]>,
    /// systemd's log of what userspace measured.
    pub userspace_log: Option<&'a [u8]>,
    /// The kernel's command line, as /proc/cmdline shows it.
    pub command_line: Option<&'a [u8]>,
    /// The EK certificate and what was with it, PEM or one in DER.
    pub ek_certificate: Option<&'a [u8]>,
    /// Whose EK certificates are trusted.
    pub ek_roots: Option<&'a EkRoots>,
    /// The time at which certificates are judged, in seconds since 1970.
    pub now: i64,
    /// A policy, signed or not.
    pub policy: Option<&'a [u8]>,
    /// PEM of the keys one of which has to have signed the policy.
    pub policy_keys: Option<&'a [u8]>,
    /// JSON of what is remembered of the TPM: `reset_count`, `restart_count`, `clock`, `firmware_version`.
    pub previous: Option<&'a [u8]>,
    /// Whether what only our own nodes have to meet is judged: exact AK template, qualified signer, firmware
    /// measurements.
    pub node_rules: bool,
}

/// Judges the files.
///
/// # Errors
/// [`InputError`] for the first file that cannot be read; there is no verdict then.
pub fn appraise_files(files: &Files<'_>) -> Result<FilesVerdict, InputError> {
    let inputs = Inputs::read(files)?;
    let mut appraisal = Appraisal { files, inputs: &inputs, rows: Vec::new() };
    appraisal.policy_itself();
    appraisal.ak();
    appraisal.signature();
    appraisal.quote();
    appraisal.qualifying_data();
    let selected = appraisal.pcr_selection();
    let proven = appraisal.pcr_digest(selected);
    appraisal.ek();
    appraisal.continuity();
    appraisal.pcr_policy();
    let is_proven = proven && !appraisal.has_failed(&[Check::Signature, Check::Quote, Check::QualifyingData]);
    appraisal.logs(is_proven);
    let mut rows = appraisal.rows;
    rows.sort_by_key(|row| row.check);
    Ok(FilesVerdict::new(rows, &inputs.logs.replayed))
}

/// What is remembered of a TPM, as a file says it. What else a stored checkpoint has is not looked at.
#[derive(Clone, Copy, Debug, Deserialize)]
struct Remembered {
    reset_count: u32,
    restart_count: u32,
    clock: u64,
    firmware_version: u64,
}

/// The files, read.
struct Inputs<'a> {
    quote: Option<Result<TpmsAttest, AttestError>>,
    signature: Option<TpmSignature<'a>>,
    ak: Option<AttestationKey>,
    pcrs: Option<PcrFile>,
    logs: Logs<'a>,
    chain: Option<Vec<Vec<u8>>>,
    policy: Option<Result<Policy, PolicyError>>,
    previous: Option<Checkpoint>,
}

impl<'a> Inputs<'a> {
    fn read(files: &Files<'a>) -> Result<Self, InputError> {
        let quote = match files.quote.map(TpmsAttest::decode_at) {
            None => None,
            Some(Ok(attest)) => Some(Ok(attest)),
            // A readable structure that is something else: that is a finding.
            Some(Err((error @ (AttestError::NotMadeByTpm(_) | AttestError::NotAQuote(_)), _))) => Some(Err(error)),
            Some(Err((error, at))) => {
                return Err(InputError::new("quote", attest_code(&error), at, format!("{error}: {}", source(&error))));
            }
        };
        let signature = match files.signature.map(TpmSignature::decode).transpose() {
            Ok(signature) => signature,
            Err((error, at)) => return Err(InputError::new("signature", error.code(), at, source(&error))),
        };
        let ak = match files.ak.map(AttestationKey::from_bytes).transpose() {
            Ok(ak) => ak,
            Err((error, at)) => return Err(InputError::new("ak", error.code(), at, source(&error))),
        };
        if files.qualifying_data.is_some_and(|data| data.len() > MAX_QUALIFYING_DATA_LEN) {
            let detail = format!("longer than {MAX_QUALIFYING_DATA_LEN} bytes");
            return Err(InputError::new("qualifying-data", "qualifying_data_too_long", 0, detail));
        }
        let quoted = quote.as_ref().and_then(|quote| quote.as_ref().ok()).map(|attest| &attest.pcr_select);
        let pcrs = match files.pcrs.map(|bytes| PcrFile::parse(bytes, quoted)).transpose() {
            Ok(pcrs) => pcrs,
            // What should have said which PCRs they are is no quote, and told below.
            Err((PcrFileError::NeedsQuote, _)) if quote.is_some() => None,
            Err((error, at)) => return Err(InputError::new("pcrs", error.code(), at, error.to_string())),
        };
        let logs = Logs::read(files)?;
        let chain = files.ek_certificate.map(read_chain).transpose()?;
        let policy = read_policy(files)?;
        let previous = files.previous.map(read_previous).transpose()?;
        Ok(Self { quote, signature, ak, pcrs, logs, chain, policy, previous })
    }

    fn attest(&self) -> Option<&TpmsAttest> {
        self.quote.as_ref().and_then(|quote| quote.as_ref().ok())
    }

    fn values(&self) -> Option<&PcrValues> {
        self.pcrs.as_ref().map(|pcrs| &pcrs.values)
    }

    /// The policy, where it can be used.
    fn policy(&self) -> Option<&Policy> {
        self.policy.as_ref().and_then(|policy| policy.as_ref().ok())
    }
}

/// An error and what is behind it, for a person.
fn source(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

fn read_policy(files: &Files<'_>) -> Result<Option<Result<Policy, PolicyError>>, InputError> {
    let trust = match files.policy_keys {
        None => PolicyTrust::Any,
        Some(pem) => match P256Key::from_pem(pem) {
            Some(keys) => PolicyTrust::from_keys(keys),
            None => {
                let detail = "no P-256 public key in PEM".to_owned();
                return Err(InputError::new("policy-key", "policy_key_unreadable", 0, detail));
            }
        },
    };
    match files.policy.map(|bytes| Policy::open(bytes, &trust)) {
        None => Ok(None),
        Some(Ok(policy)) => Ok(Some(Ok(policy))),
        // It may well be readable: that nobody trusted signed it is a finding.
        Some(Err(error @ (PolicyError::Unsigned | PolicyError::Signature(_)))) if files.policy_keys.is_some() => {
            Ok(Some(Err(error)))
        }
        Some(Err(error)) => Err(InputError::new("policy", error.code(), 0, error.to_string())),
    }
}

fn read_previous(bytes: &[u8]) -> Result<Checkpoint, InputError> {
    let remembered: Remembered = serde_json::from_slice(bytes).map_err(|error| {
        InputError::new("previous", "previous_unreadable", json_offset(bytes, &error), error.to_string())
    })?;
    let Remembered { reset_count, restart_count, clock, firmware_version } = remembered;
    Ok(Checkpoint { reset_count, restart_count, clock, firmware_version, ..Checkpoint::default() })
}

/// The certificates of a file: PEM, any number, or one in DER.
fn read_chain(bytes: &[u8]) -> Result<Vec<Vec<u8>>, InputError> {
    let error = |at, detail: String| InputError::new("ek-cert", "ek_certificate_unreadable", at, detail);
    let pem_at = bytes.windows(11).position(|window| window == b"-----BEGIN ");
    let chain = match pem_at {
        None => vec![bytes.to_vec()],
        Some(at) => {
            let mut rest = bytes;
            let certificates = rustls_pemfile::certs(&mut rest).map(|der| der.map(|der| der.to_vec()));
            let certificates: Vec<_> =
                certificates.collect::<Result<_, _>>().map_err(|bad| error(at, bad.to_string()))?;
            if certificates.is_empty() {
                return Err(error(at, "no certificate in the PEM".to_owned()));
            }
            certificates
        }
    };
    for certificate in &chain {
        certificate_spki(certificate)
            .map_err(|bad| InputError::new("ek-cert", bad.code(), pem_at.unwrap_or(0), bad.to_string()))?;
    }
    Ok(chain)
}

/// An appraisal under way.
struct Appraisal<'i, 'a> {
    files: &'i Files<'a>,
    inputs: &'i Inputs<'a>,
    rows: Vec<Row>,
}

impl<'a> Appraisal<'_, 'a> {
    fn pass(&mut self, check: Check, found: impl Into<String>) {
        self.rows.push(Row::pass(check, found));
    }

    fn fail(&mut self, check: Check, code: &'static str, expected: impl Into<String>, found: impl Into<String>) {
        self.rows.push(Row::fail(check, code, None, expected, found));
    }

    fn fail_at(
        &mut self,
        check: Check,
        code: &'static str,
        place: Place,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) {
        self.rows.push(Row::of_finding(&Finding::at(check, code, place, expected, found)));
    }

    fn not_checked(&mut self, check: Check, reason: &'static str, found: impl Into<String>) {
        self.rows.push(Row::not_checked(check, reason, found));
    }

    fn has_failed(&self, checks: &[Check]) -> bool {
        self.rows.iter().any(|row| row.result == Outcome::Fail && checks.contains(&row.check))
    }

    /// What a judge of rules reports: each finding and each omission its own row, and one for all that is in order.
    fn report(&mut self, check: Check, report: &Report) {
        for finding in report.findings() {
            self.rows.push(Row::of_finding(finding));
        }
        if report.more() > 0 {
            self.fail(check, "more_findings", "none", format!("{} more of them", report.more()));
        }
        if report.is_clean() {
            self.pass(check, report.what_was_checked().join("; "));
        }
        for omitted in report.what_was_not_checked() {
            self.not_checked(check, "not_judged", omitted.clone());
        }
    }

    fn policy_itself(&mut self) {
        match &self.inputs.policy {
            None => self.not_checked(Check::Policy, "no_policy", ""),
            Some(Ok(policy)) => {
                let signed = if self.files.policy_keys.is_some() { ", signed by a given key" } else { "" };
                self.pass(Check::Policy, format!("{:?}{signed}", policy.name()));
            }
            Some(Err(error)) => {
                self.fail(Check::Policy, error.code(), "signed by a given key", error.to_string());
            }
        }
    }

    fn ak(&mut self) {
        let Some(ak) = &self.inputs.ak else { return self.not_checked(Check::Ak, "no_ak", "") };
        if !self.files.node_rules {
            return self.not_checked(Check::Ak, "no_node_rules", ak.kind());
        }
        let Some(area) = ak.area() else {
            let found = "the key alone: a TPM2B_PUBLIC says how it was made";
            return self.not_checked(Check::Ak, "no_public_area", found);
        };
        let before = self.rows.len();
        self.template(area);
        if self.rows.len() == before {
            self.pass(Check::Ak, format!("{}, the template bit by bit", ak.kind()));
        }
    }

    /// Each attribute that is missing or should not be there has its own reason, and so has what else differs.
    fn template(&mut self, area: &PublicArea) {
        const REQUIRED: [(u32, &str, &str); 7] = [
            (ObjectAttributes::FIXED_TPM, "fixedTPM", "ak_not_fixed_tpm"),
            (ObjectAttributes::FIXED_PARENT, "fixedParent", "ak_not_fixed_parent"),
            (ObjectAttributes::SENSITIVE_DATA_ORIGIN, "sensitiveDataOrigin", "ak_not_sensitive_data_origin"),
            (ObjectAttributes::USER_WITH_AUTH, "userWithAuth", "ak_not_user_with_auth"),
            (ObjectAttributes::NO_DA, "noDA", "ak_not_no_da"),
            (ObjectAttributes::RESTRICTED, "restricted", "ak_not_restricted"),
            (ObjectAttributes::SIGN, "sign", "ak_not_sign"),
        ];
        let attributes = area.attributes();
        let found = format!("0x{:08x}", attributes.0);
        for (bit, name, code) in REQUIRED {
            if !attributes.has(bit) {
                self.fail(Check::Ak, code, format!("{name} set, as in 0x{:08x}", AK_ATTRIBUTES.0), found.clone());
            }
        }
        if attributes.has(ObjectAttributes::DECRYPT) {
            self.fail(Check::Ak, "ak_decrypt", "decrypt clear", found.clone());
        }
        let others = attributes.0 & !(AK_ATTRIBUTES.0 | ObjectAttributes::DECRYPT);
        if others != 0 {
            self.fail(Check::Ak, "ak_other_attributes", format!("0x{:08x}", AK_ATTRIBUTES.0), found);
        }
        let public = match TpmtPublic::decode(area.bytes()) {
            Ok(public) => public,
            Err(error) => {
                let expected = "P-256, P-384 or RSA 2048, as our templates have them";
                return self.fail(Check::Ak, "ak_wrong_type", expected, source(&error));
            }
        };
        // The attributes were told above, and hide nothing of the rest.
        let rest = TpmtPublic { attributes: AK_ATTRIBUTES, ..public };
        if let Err(error) = check_ak(&rest) {
            let code = match error {
                AkTemplateError::NameAlg { .. } => "ak_wrong_name_alg",
                AkTemplateError::AuthPolicy => "ak_auth_policy",
                AkTemplateError::Symmetric => "ak_symmetric",
                AkTemplateError::Scheme => "ak_wrong_scheme",
                AkTemplateError::KeyBits { .. } => "ak_wrong_size",
                AkTemplateError::Exponent { .. } => "ak_wrong_exponent",
                AkTemplateError::Unique => "ak_not_a_key",
                _ => "wrong_ak_template",
            };
            self.fail(Check::Ak, code, "the template", error.to_string());
        }
    }

    fn signature(&mut self) {
        let (Some(message), Some(signature), Some(ak)) = (self.files.quote, &self.inputs.signature, &self.inputs.ak)
        else {
            let missing = match (self.files.quote, &self.inputs.signature) {
                (None, _) => "no_quote",
                (_, None) => "no_signature",
                _ => "no_ak",
            };
            return self.not_checked(Check::Signature, missing, "");
        };
        let allow_sha1 = self.inputs.policy().is_some_and(|policy| policy.accepts(Exception::Sha1));
        let kind = format!("{} with {} by {}", signature.scheme().name(), signature.hash(), ak.kind());
        match ak.verify(message, signature, allow_sha1) {
            Ok(()) => self.pass(Check::Signature, kind),
            Err(error) => {
                self.fail(Check::Signature, error.code(), "a signature by the AK over the quote", error.to_string());
            }
        }
    }

    fn quote(&mut self) {
        let attest = match &self.inputs.quote {
            None => return self.not_checked(Check::Quote, "no_quote", ""),
            Some(Err(error)) => {
                return self.fail(Check::Quote, attest_code(error), "a quote made by a TPM", error.to_string());
            }
            Some(Ok(attest)) => attest,
        };
        if !self.files.node_rules {
            self.pass(Check::Quote, "a quote with a TPM's magic");
            return self.not_checked(Check::Quote, "no_node_rules", "the qualified signer");
        }
        match self.inputs.ak.as_ref().map(|ak| ak.area().and_then(|area| area.qualified_name(TPM_RH_ENDORSEMENT))) {
            None => self.not_checked(Check::Quote, "no_ak", "the qualified signer"),
            Some(None) => self.not_checked(Check::Quote, "no_public_area", "the qualified signer"),
            Some(Some(name)) if name == attest.qualified_signer => {
                self.pass(Check::Quote, "a quote of the AK, in the endorsement hierarchy");
            }
            Some(Some(name)) => {
                self.fail(Check::Quote, "wrong_signer", name.to_string(), attest.qualified_signer.to_string());
            }
        }
    }

    fn qualifying_data(&mut self) {
        let Some(attest) = self.inputs.attest() else {
            return self.not_checked(Check::QualifyingData, "no_quote", "");
        };
        match self.files.qualifying_data {
            None => {
                let found = format!("the quote's is {}", bounded_hex(&attest.extra_data));
                self.not_checked(Check::QualifyingData, "no_qualifying_data", found);
            }
            Some(data) if data == attest.extra_data.as_slice() => {
                self.pass(Check::QualifyingData, bounded_hex(data));
            }
            Some(data) => {
                let found = bounded_hex(&attest.extra_data);
                self.fail(Check::QualifyingData, "wrong_binding", bounded_hex(data), found);
            }
        }
    }

    /// Whether what was asked for is what was quoted, as far as that is known.
    fn pcr_selection(&mut self) -> bool {
        let check = Check::PcrSelection;
        let Some(attest) = self.inputs.attest() else {
            self.not_checked(check, "no_quote", "");
            return true;
        };
        let quoted = &attest.pcr_select;
        if let Err(PcrError::DuplicateBank { bank }) = digest_over(quoted, &PcrValues::new(), HashAlg::Sha256) {
            let place = Place { bank: Some(bank), ..Place::default() };
            self.fail_at(check, "selection_bank_twice", place, "each bank once", selection_text(quoted));
            return false;
        }
        if self.files.node_rules && quoted.mask(HashAlg::Sha1) != 0 {
            let accepted = self.inputs.policy().is_some_and(|policy| policy.accepts(Exception::Sha1));
            if !accepted {
                let expected = "no SHA-1 bank that the policy does not accept";
                self.fail(check, "sha1_bank", expected, selection_text(quoted));
            }
        }
        let asked = self.inputs.pcrs.as_ref().map(|pcrs| pcrs.selection.as_ref());
        match asked {
            None => self.not_checked(check, "no_pcrs", selection_text(quoted)),
            Some(None) => self.not_checked(check, "no_selection", "bare values do not say what was asked for"),
            Some(Some(asked)) if asked.same_as(quoted) => self.pass(check, selection_text(quoted)),
            Some(Some(asked)) => {
                self.fail(check, "wrong_selection", selection_text(asked), selection_text(quoted));
                return false;
            }
        }
        true
    }

    /// Whether the values are those that were quoted.
    fn pcr_digest(&mut self, selected: bool) -> bool {
        let check = Check::PcrDigest;
        let Some(attest) = self.inputs.attest() else {
            self.not_checked(check, "no_quote", "");
            return false;
        };
        if !selected {
            self.not_checked(check, "wrong_selection", "");
            return false;
        }
        let hash = match &self.inputs.signature {
            Some(signature) if !self.has_failed(&[Check::Signature]) => signature.hash(),
            // Without a good signature only the digest's length says which hash made it.
            _ => HashAlg::ALL
                .into_iter()
                .find(|hash| hash.digest_len() == attest.pcr_digest.len())
                .unwrap_or(HashAlg::Sha256),
        };
        let from_logs;
        let (values, of) = match self.inputs.values() {
            Some(values) => (values, "the values of --pcrs"),
            None => match self.inputs.logs.values_of(&attest.pcr_select) {
                Some(values) => {
                    from_logs = values;
                    (&from_logs, "the values that the logs replay to")
                }
                None => {
                    self.not_checked(check, "no_pcrs", "");
                    return false;
                }
            },
        };
        match digest_over(&attest.pcr_select, values, hash) {
            Ok(digest) if digest == attest.pcr_digest => {
                self.pass(check, format!("{hash} over {of}"));
                return true;
            }
            Ok(digest) => {
                let found = format!("{digest}, {hash} over {of}");
                self.fail(check, "wrong_pcr_digest", attest.pcr_digest.to_string(), found);
            }
            Err(PcrError::Missing { bank, index }) => {
                self.fail_at(check, "pcr_value_missing", Place::pcr(bank, index), "a value", "none");
            }
            Err(PcrError::Extra { bank, index }) => {
                let found = values.get(bank, index).map_or_else(String::new, ToString::to_string);
                self.fail_at(check, "pcr_value_extra", Place::pcr(bank, index), "none: it was not quoted", found);
            }
            Err(error) => self.fail(check, "wrong_pcrs", "the values of the quoted PCRs", error.to_string()),
        }
        false
    }

    fn ek(&mut self) {
        self.not_checked(Check::Hardware, "ak_not_bound_to_ek", "files do not show that one TPM holds both keys");
        let check = Check::EkCertificate;
        let Some(chain) = &self.inputs.chain else { return self.not_checked(check, "no_ek_certificate", "") };
        let Some(roots) = self.files.ek_roots else { return self.not_checked(check, "no_ek_roots", "") };
        match roots.validate_certificate(chain, self.files.now) {
            Ok(path) => self.pass(check, bounded(&format!("issued by {}", path.issuer()))),
            Err(error) => {
                self.fail(check, error.code(), "a path to a trusted certificate", bounded(&error.to_string()));
            }
        }
    }

    fn continuity(&mut self) {
        let check = Check::Continuity;
        let Some(attest) = self.inputs.attest() else { return self.not_checked(check, "no_quote", "") };
        let clock = attest.clock_info;
        let now = format!(
            "reset {}, restart {}, clock {} ms{}, firmware 0x{:016x}",
            clock.reset_count,
            clock.restart_count,
            clock.clock,
            if clock.safe { "" } else { " (not safe)" },
            attest.firmware_version
        );
        let Some(previous) = &self.inputs.previous else { return self.not_checked(check, "no_previous", now) };
        match attest_continuity(Some(previous), attest) {
            Ok(epoch) => {
                let boot = if epoch == Epoch::Same { "the same boot" } else { "another boot" };
                let changed = attest.firmware_version != previous.firmware_version;
                let firmware = if changed { "; firmware_version_changed between boots" } else { "" };
                self.pass(check, format!("{boot}: {now}{firmware}"));
            }
            Err(discontinuity) => {
                let (what, expected, found) = discontinuity.parts();
                let place = Some(Where::about(what));
                self.rows.push(Row::fail(check, discontinuity.code(), place, expected, found));
            }
        }
    }

    fn pcr_policy(&mut self) {
        let check = Check::PcrPolicy;
        let policy = self.inputs.policy();
        match policy.and_then(Policy::release) {
            Some(ReleaseRule::PhasePcr(_)) => self.not_checked(Check::Phase, "no_pins", "files hold no pins"),
            _ => self.not_checked(Check::Phase, "no_phase_pcr", ""),
        }
        let Some(values) = self.inputs.values() else {
            return self.not_checked(check, if policy.is_some() { "no_pcrs" } else { "no_policy" }, "");
        };
        let before = self.rows.len();
        if let Some(policy) = policy {
            for (bank, index, good) in policy.pcrs() {
                let place = Place::pcr(bank, index);
                match values.get(bank, index) {
                    None => self.fail_at(check, "pcr_not_quoted", place, list(good), "no value"),
                    Some(value) if good.contains(value) => {}
                    Some(value) => self.fail_at(check, "pcr_mismatch", place, list(good), value.to_string()),
                }
            }
        }
        if self.files.node_rules && !policy.is_some_and(|policy| policy.accepts(Exception::NoFirmwareMeasurements)) {
            for bank in HashAlg::ALL {
                let mut firmware = FIRMWARE_PCRS.filter_map(|index| values.get(bank, index)).peekable();
                if firmware.peek().is_some() && firmware.all(|value| value.iter().all(|byte| *byte == 0)) {
                    let place = Place { bank: Some(bank), ..Place::default() };
                    let expected = "a firmware PCR (0 to 7) that is not zero";
                    self.fail_at(check, "no_firmware_measurements", place, expected, "all given ones are zero");
                }
            }
        }
        if self.rows.len() > before {
            return;
        }
        match policy.map(|policy| policy.pcrs().count()) {
            None if self.files.node_rules => self.pass(check, "firmware measured into each bank"),
            None => self.not_checked(check, "no_policy", ""),
            Some(0) => self.not_checked(check, "no_pcr_rules", "the policy names no PCR values"),
            Some(count) => self.pass(check, format!("{count} PCRs hold values that the policy lists")),
        }
    }
}

/// Values for a finding: as many as a person reads.
fn list(values: &[Digest]) -> String {
    let shown: Vec<String> = values.iter().take(2).map(ToString::to_string).collect();
    match values.len().saturating_sub(shown.len()) {
        0 => shown.join(" or "),
        more => format!("{} or one of {more} more", shown.join(" or ")),
    }
}

/// `sha1:0,1+sha256:7`, as tools write it.
fn selection_text(selection: &PcrSelectionList) -> String {
    let bank = |bank: &protocol::tpm::pcr::PcrSelection| {
        let indices: Vec<String> = bank.indices().map(|index| index.to_string()).collect();
        format!("{}:{}", bank.bank, if indices.is_empty() { "none".to_owned() } else { indices.join(",") })
    };
    let text: Vec<String> = selection.iter().map(bank).collect();
    if text.is_empty() { "none".to_owned() } else { text.join("+") }
}

fn bounded_hex(bytes: &[u8]) -> String {
    match bytes.len() {
        0 => "empty".to_owned(),
        1..=80 => hex::encode(bytes),
        len => format!("{}… ({len} bytes)", hex::encode(bytes.get(..64).unwrap_or_default())),
    }
}

/// At most 200 characters.
fn bounded(text: &str) -> String {
    match text.char_indices().nth(199) {
        Some((at, _)) if text.chars().nth(200).is_some() => format!("{}…", text.get(..at).unwrap_or_default()),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests;
