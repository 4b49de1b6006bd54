//! What a TPM is, how fast it is, and whether anything about it changed: for the TPM of a machine that somebody uses.
//!
//! **Invariant**: nothing here extends a PCR, writes to NV memory, makes a key stay, or tries an authorisation that could
//! count towards a lockout: commands go out through [`Batch::harmless`], which knows only such that do not.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use protocol::bytes::Bytes;
use protocol::codec::Reader;
use protocol::message::enrol::Credential;
use protocol::tpm::alg::HashAlg;
use protocol::tpm::command::{
    self, Entity, FIRST_NV_INDEX, FIRST_PERSISTENT, MAX_NV_READ_LEN, NvPublic, PcrRead, Response, TimeInfo,
};
use protocol::tpm::credential::make_credential;
use protocol::tpm::pcr::{PcrSelection, PcrSelectionList, PcrValues};
use protocol::tpm::template::{AkKind, EkTemplate};
use rand_core::{OsRng, RngCore as _};
use x509_cert::Certificate;
use x509_cert::der::{Decode as _, Encode as _};

use crate::rogue::tpm::{Batch, KeySpec};

/// What must be the same before and after: what is in a TPM and stays there.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Fingerprint {
    /// All PCRs of all banks.
    pub pcrs: PcrValues,
    /// Counts extensions of any PCR.
    pub update_counter: u32,
    /// Handles of persistent objects.
    pub persistent: Vec<u32>,
    /// NV indices.
    pub nv: Vec<u32>,
    /// Failed authorisations that count towards a lockout.
    pub lockout_counter: u32,
    /// Resets and restarts.
    pub boots: (u32, u32),
}

impl Fingerprint {
    /// Takes it.
    ///
    /// # Errors
    /// When the TPM does not answer.
    pub fn of(tcti: &str) -> Result<Self> {
        let mut batch = Batch::harmless(tcti)?;
        let mut everything = PcrSelectionList::new();
        for bank in command::parse_pcr_banks(&batch.raw(&command::pcr_banks().plain())?)? {
            everything.push(bank)?;
        }
        let pcrs = batch.pcr_read(&everything)?;
        let one = everything.iter().next().context("the TPM has no PCRs")?;
        let mut first = PcrSelectionList::new();
        first.push(PcrSelection::from_indices(one.bank, [0])?)?;
        let update_counter = PcrRead::parse(&batch.raw(&command::pcr_read(&first).plain())?)?.update_counter;
        let clock = TimeInfo::parse(&batch.raw(&command::read_clock().plain())?)?.clock_info;
        Ok(Self {
            pcrs,
            update_counter,
            persistent: handles(&mut batch, FIRST_PERSISTENT)?,
            nv: handles(&mut batch, FIRST_NV_INDEX)?,
            lockout_counter: property(&mut batch, TPM_PT_LOCKOUT_COUNTER)?,
            boots: (clock.reset_count, clock.restart_count),
        })
    }

    /// What is not as it was, a line each. PCR 10, and with it the counter of extensions, is the kernel's: where IMA
    /// measures (`ima`), it goes on by itself.
    pub fn changes(&self, after: &Self, ima: bool) -> Vec<String> {
        let mut lines = Vec::new();
        for (bank, index, before) in self.pcrs.iter() {
            let now = after.pcrs.get(bank, index);
            if now != Some(before) && !(ima && index == 10) {
                let now = now.map_or_else(|| "nothing".to_owned(), ToString::to_string);
                lines.push(format!("PCR {index} of bank {bank} was {before} and is {now}"));
            }
        }
        let mut number = |what: &str, before: u32, now: u32| {
            if before != now {
                lines.push(format!("the {what} was {before} and is {now}"));
            }
        };
        if !ima {
            number("count of PCR updates", self.update_counter, after.update_counter);
        }
        number("count of failed authorisations", self.lockout_counter, after.lockout_counter);
        number("count of resets", self.boots.0, after.boots.0);
        number("count of restarts", self.boots.1, after.boots.1);
        for (what, before, now) in
            [("persistent objects", &self.persistent, &after.persistent), ("NV indices", &self.nv, &after.nv)]
        {
            if before != now {
                lines.push(format!("the {what} were {before:08x?} and are {now:08x?}"));
            }
        }
        lines
    }
}

/// Whether this machine's kernel measures files into PCR 10 (readable by root only).
pub fn ima_measures() -> bool {
    let count = std::fs::read_to_string("/sys/kernel/security/ima/runtime_measurements_count");
    // The first entry is the boot's own; without a policy it is the only one.
    count.is_ok_and(|count| count.trim().parse::<u64>().is_ok_and(|count| count > 1))
}

/// One kind of endorsement key.
#[derive(Clone, Debug)]
pub struct EkReport {
    /// Which.
    pub template: EkTemplate,
    /// The certificate in NV: its bytes, its issuer in RFC 4514's form, and whether it is for the key that the template
    /// makes.
    pub certificate: Option<(usize, String, bool)>,
    /// Why there is no key of this kind, else how long making it took.
    pub made: Result<Duration, String>,
}

/// How long a command took, several times.
#[derive(Clone, Debug)]
pub struct Timing {
    /// Which command, and of what.
    pub what: String,
    /// Each time, ascending.
    pub times: Vec<Duration>,
}

impl Timing {
    /// The one in the middle.
    pub fn median(&self) -> Duration {
        self.times.get(self.times.len() / 2).copied().unwrap_or_default()
    }
}

/// What a TPM is.
#[derive(Clone, Debug)]
pub struct Report {
    /// Where it is.
    pub tcti: String,
    /// TPM_PT_MANUFACTURER.
    pub manufacturer: String,
    /// TPM_PT_VENDOR_STRING_1 to _4.
    pub vendor: String,
    /// TPM_PT_FIRMWARE_VERSION_1 and _2.
    pub firmware: String,
    /// Family, level, revision and date of the specification that it follows.
    pub specification: String,
    /// Algorithms, by the TCG's names.
    pub algorithms: Vec<String>,
    /// Elliptic curves.
    pub curves: Vec<String>,
    /// PCR banks with how many PCRs are allocated in each.
    pub banks: Vec<(HashAlg, usize)>,
    /// Endorsement keys, in the agent's order.
    pub eks: Vec<EkReport>,
    /// The attestation key's kind.
    pub ak: AkKind,
    /// Times.
    pub timings: Vec<Timing>,
}

/// How often a command is timed unless somebody says otherwise.
pub const ROUNDS: usize = 15;

impl Report {
    /// Looks at the TPM, and times each command `rounds` times.
    ///
    /// # Errors
    /// When it does not answer, or refuses what every TPM that the agent works with grants.
    pub fn of(tcti: &str, rounds: usize) -> Result<Self> {
        ensure!(rounds > 0, "times of no round");
        let mut batch = Batch::harmless(tcti)?;
        let mut text = |properties: &[u32]| -> Result<String> {
            let mut bytes = Vec::new();
            for name in properties {
                bytes.extend(property(&mut batch, *name)?.to_be_bytes());
            }
            Ok(bytes.into_iter().map(char::from).filter(|c| c.is_ascii_graphic() || *c == ' ').collect::<String>())
        };
        let manufacturer = text(&[command::TPM_PT_MANUFACTURER])?.trim().to_owned();
        let vendor = text(&TPM_PT_VENDOR_STRINGS)?.trim().to_owned();
        let family = text(&[TPM_PT_FAMILY_INDICATOR])?.trim().to_owned();
        let mut number = |name| property(&mut batch, name);
        let (high, low) = (number(command::TPM_PT_FIRMWARE_VERSION_1)?, number(command::TPM_PT_FIRMWARE_VERSION_2)?);
        let firmware = format!("{}.{}.{}.{}", high >> 16, high & 0xffff, low >> 16, low & 0xffff);
        let (level, revision) = (number(TPM_PT_LEVEL)?, number(TPM_PT_REVISION)?);
        let (day, year) = (number(TPM_PT_DAY_OF_YEAR)?, number(TPM_PT_YEAR)?);
        let specification =
            format!("{family} level {level} revision {}.{:02}, day {day} of {year}", revision / 100, revision % 100);
        let banks = command::parse_pcr_banks(&batch.raw(&command::pcr_banks().plain())?)?;
        let mut timings = Vec::new();
        let mut eks = Vec::new();
        for template in EkTemplate::TRIED {
            eks.push(look_at_ek(&mut batch, template)?);
        }
        let chosen = choose(&eks).context("the TPM makes no endorsement key that the agent knows")?;
        let ak = time(&mut batch, chosen, &banks, rounds, &mut timings)?;
        Ok(Self {
            tcti: tcti.to_owned(),
            manufacturer,
            vendor,
            firmware,
            specification,
            algorithms: algorithms(&mut batch)?,
            curves: curves(&mut batch)?,
            banks: banks.iter().map(|bank| (bank.bank, bank.indices().count())).collect(),
            eks,
            ak,
            timings,
        })
    }
}

/// The EK that the agent would take: the first with a certificate, else the first that can be made.
fn choose(eks: &[EkReport]) -> Option<EkTemplate> {
    let with_certificate = eks.iter().find(|ek| matches!(ek.certificate, Some((_, _, true))));
    with_certificate.or_else(|| eks.iter().find(|ek| ek.made.is_ok())).map(|ek| ek.template)
}

fn look_at_ek(batch: &mut Batch, template: EkTemplate) -> Result<EkReport> {
    let begun = Instant::now();
    let made = batch.create(&KeySpec::ek(template));
    let took = begun.elapsed();
    let made = match made {
        Ok(key) => {
            batch.flush(key.handle)?;
            Ok((took, key.public.spki_der()?))
        }
        Err(error) => Err(format!("{:#}", error.context("no such key"))),
    };
    let certificate = batch.ek_certificate(template)?.map(|der| {
        let (issuer, spki) = match Certificate::from_der(&der) {
            Ok(certificate) => {
                let spki = certificate.tbs_certificate.subject_public_key_info.to_der().unwrap_or_default();
                (certificate.tbs_certificate.issuer.to_string(), spki)
            }
            Err(error) => (format!("unreadable ({error})"), Vec::new()),
        };
        (der.len(), issuer, made.as_ref().is_ok_and(|(_, made)| *made == spki))
    });
    Ok(EkReport { template, certificate, made: made.map(|(took, _)| took) })
}

/// Times the commands that the agent sends; gives the kind of AK that the TPM makes.
fn time(
    batch: &mut Batch,
    ek: EkTemplate,
    banks: &[PcrSelection],
    rounds: usize,
    timings: &mut Vec<Timing>,
) -> Result<AkKind> {
    let mut measure = |batch: &mut Batch, what: String, work: &mut dyn FnMut(&mut Batch) -> Result<Duration>| {
        let mut times = (0..rounds).map(|_| work(batch)).collect::<Result<Vec<_>>>().with_context(|| what.clone())?;
        times.sort_unstable();
        timings.push(Timing { what, times });
        Ok::<_, anyhow::Error>(())
    };
    let command = |batch: &mut Batch, bytes: &[u8]| {
        let begun = Instant::now();
        let response = batch.raw(bytes)?;
        let took = begun.elapsed();
        Response::parse(&response, false)?;
        Ok::<_, anyhow::Error>(took)
    };

    let bytes = command::get_random(command::MAX_RANDOM_LEN).plain();
    measure(batch, "TPM2_GetRandom (32 bytes)".into(), &mut |batch| command(batch, &bytes))?;
    let bytes = command::read_clock().plain();
    measure(batch, "TPM2_ReadClock".into(), &mut |batch| command(batch, &bytes))?;
    let bank = banks.iter().find(|bank| bank.bank == HashAlg::Sha256).or(banks.first()).context("no PCR bank")?.bank;
    let mut pcrs = PcrSelectionList::new();
    pcrs.push(PcrSelection::from_indices(bank, 0..8)?)?;
    let bytes = command::pcr_read(&pcrs).plain();
    measure(batch, format!("TPM2_PCR_Read (0 to 7, {bank})"), &mut |batch| command(batch, &bytes))?;
    let index = ek.certificate_index();
    if let Ok(public) = NvPublic::parse(&batch.raw(&command::nv_read_public(index).plain())?) {
        let len = public.data_len.min(MAX_NV_READ_LEN);
        let read = command::nv_read(Entity::named(index, public.name), 0, len);
        let bytes = read.authorized(&[command::Auth::EmptyPassword]);
        measure(batch, format!("TPM2_NV_Read ({len} bytes)"), &mut |batch| command(batch, &bytes))?;
    }

    let create = |batch: &mut Batch, spec: &KeySpec| {
        let begun = Instant::now();
        let key = batch.create(spec)?;
        let took = begun.elapsed();
        batch.flush(key.handle)?;
        Ok::<_, anyhow::Error>(took)
    };
    let spec = KeySpec::ek(ek);
    measure(batch, format!("TPM2_CreatePrimary of the EK ({})", ek.name()), &mut |batch| create(batch, &spec))?;
    let kinds = AkKind::ALL.into_iter();
    let kind =
        kinds.map(|kind| (kind, batch.create(&KeySpec::ak(kind)))).find_map(|(kind, made)| Some((kind, made.ok()?)));
    let (kind, ak) = kind.context("the TPM makes no attestation key that the agent knows")?;
    batch.flush(ak.handle)?;
    let spec = KeySpec::ak(kind);
    measure(batch, format!("TPM2_CreatePrimary of the AK ({})", kind_name(kind)), &mut |batch| create(batch, &spec))?;

    let ak = batch.create(&spec)?;
    let ek = batch.create(&KeySpec::ek(ek))?;
    measure(batch, "TPM2_ActivateCredential (and its policy session)".into(), &mut |batch| {
        let mut secret = [0; 32];
        OsRng.fill_bytes(&mut secret);
        let made = make_credential(&ek.public, &ak.name, &secret, &mut OsRng)?;
        let credential = Credential {
            id_object: Bytes::new(&made.id_object)?,
            encrypted_secret: Bytes::new(&made.encrypted_secret)?,
        };
        let begun = Instant::now();
        let opened = batch.activate_credential(&ak, &ek, &credential)?;
        let took = begun.elapsed();
        ensure!(opened.expose()[..] == secret, "the credential opened to something else");
        Ok(took)
    })?;
    let mut nonce = [0; 32];
    OsRng.fill_bytes(&mut nonce);
    measure(batch, format!("TPM2_Quote (0 to 7, {bank})"), &mut |batch| {
        let begun = Instant::now();
        batch.quote(&ak, &nonce, &pcrs)?;
        Ok(begun.elapsed())
    })?;
    batch.flush(ek.handle)?;
    batch.flush(ak.handle)?;
    Ok(kind)
}

const fn kind_name(kind: AkKind) -> &'static str {
    match kind {
        AkKind::P256 => "p256",
        AkKind::P384 => "p384",
        AkKind::Rsa2048 => "rsa2048",
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let row = |f: &mut fmt::Formatter<'_>, name: &str, value: &str| writeln!(f, "  {name:<14}{value}");
        writeln!(f, "TPM at {}", self.tcti)?;
        row(f, "made by", &format!("{} ({})", self.manufacturer, self.vendor))?;
        row(f, "firmware", &self.firmware)?;
        row(f, "specification", &self.specification)?;
        row(f, "algorithms", &self.algorithms.join(" "))?;
        row(f, "curves", &self.curves.join(" "))?;
        let banks: Vec<String> = self.banks.iter().map(|(bank, count)| format!("{bank} ({count})")).collect();
        row(f, "PCR banks", &banks.join(" "))?;
        let chosen = choose(&self.eks);
        for ek in &self.eks {
            let mut text = match &ek.made {
                Ok(took) => format!("made in {} ms", millis(*took)),
                Err(why) => why.clone(),
            };
            match &ek.certificate {
                Some((len, issuer, ours)) => {
                    text.push_str(&format!("; certificate of {len} bytes by {issuer}"));
                    if !ours {
                        text.push_str(", for another key than the template makes");
                    }
                }
                None => text.push_str("; no certificate"),
            }
            if chosen == Some(ek.template) {
                text.push_str("; the agent takes this one");
            }
            row(f, &format!("EK {}", ek.template.name()), &text)?;
        }
        row(f, "AK", kind_name(self.ak))?;
        let rounds = self.timings.first().map_or(0, |timing| timing.times.len());
        let head = format!("  times in ms, {rounds} rounds");
        writeln!(f, "{head:<56}{:>10}{:>10}{:>10}", "median", "shortest", "longest")?;
        for timing in &self.timings {
            let (first, last) = (timing.times.first(), timing.times.last());
            let [median, first, last] =
                [timing.median(), first.copied().unwrap_or_default(), last.copied().unwrap_or_default()].map(millis);
            writeln!(f, "    {:<52}{median:>10}{first:>10}{last:>10}", timing.what)?;
        }
        Ok(())
    }
}

fn millis(time: Duration) -> String {
    format!("{:.2}", time.as_secs_f64() * 1000.0)
}

fn property(batch: &mut Batch, name: u32) -> Result<u32> {
    let found = command::parse_properties(&batch.raw(&command::properties(name, 1).plain())?)?;
    Ok(found.first().filter(|(found, _)| *found == name).map_or(0, |(_, value)| *value))
}

/// All handles of a kind, however many.
fn handles(batch: &mut Batch, first: u32) -> Result<Vec<u32>> {
    let mut all: Vec<u32> = Vec::new();
    loop {
        let from = all.last().map_or(first, |last| last + 1);
        let (found, more) = command::parse_handles(&batch.raw(&command::handles(from).plain())?)?;
        let found: Vec<u32> =
            found.into_iter().filter(|handle| handle >> 24 == first >> 24 && *handle >= from).collect();
        let end = found.is_empty() || !more;
        all.extend(found);
        if end {
            return Ok(all);
        }
    }
}

/// TPM2_GetCapability of a list: the count, and what stands behind it.
fn capability(batch: &mut Batch, capability: u32, first: u32) -> Result<(u32, Vec<u8>)> {
    let command = [
        &0x8001u16.to_be_bytes()[..],
        &22u32.to_be_bytes(),
        &TPM_CC_GET_CAPABILITY.to_be_bytes(),
        &capability.to_be_bytes(),
        &first.to_be_bytes(),
        &256u32.to_be_bytes(),
    ];
    let response = batch.raw(&command.concat())?;
    let mut reader = Reader::new(Response::parse(&response, false)?.parameters);
    let _more = reader.u8()?;
    ensure!(reader.u32()? == capability, "the TPM answers to another capability");
    let count = reader.u32()?;
    Ok((count, reader.take(reader.remaining())?.to_vec()))
}

fn algorithms(batch: &mut Batch) -> Result<Vec<String>> {
    let (count, list) = capability(batch, TPM_CAP_ALGS, 0)?;
    let mut reader = Reader::new(&list);
    let mut names = Vec::new();
    for _ in 0..count {
        let (id, _attributes) = (reader.u16()?, reader.u32()?);
        names.push(name_of(id, &ALGORITHMS));
    }
    Ok(names)
}

fn curves(batch: &mut Batch) -> Result<Vec<String>> {
    let (count, list) = capability(batch, TPM_CAP_ECC_CURVES, 0)?;
    let mut reader = Reader::new(&list);
    (0..count).map(|_| Ok(name_of(reader.u16()?, &CURVES))).collect()
}

fn name_of(id: u16, names: &[(u16, &str)]) -> String {
    names.iter().find(|(known, _)| *known == id).map_or_else(|| format!("0x{id:04x}"), |(_, name)| (*name).to_owned())
}

/// TPM 2.0 Part 2, TPM_PT.
const TPM_PT_FAMILY_INDICATOR: u32 = 0x100;
const TPM_PT_LEVEL: u32 = 0x101;
const TPM_PT_REVISION: u32 = 0x102;
const TPM_PT_DAY_OF_YEAR: u32 = 0x103;
const TPM_PT_YEAR: u32 = 0x104;
const TPM_PT_VENDOR_STRINGS: [u32; 4] = [0x106, 0x107, 0x108, 0x109];
const TPM_PT_LOCKOUT_COUNTER: u32 = 0x20e;
/// TPM 2.0 Part 2, TPM_CC and TPM_CAP.
const TPM_CC_GET_CAPABILITY: u32 = 0x17a;
const TPM_CAP_ALGS: u32 = 0;
const TPM_CAP_ECC_CURVES: u32 = 8;

/// TCG Algorithm Registry, TPM_ALG_ID.
const ALGORITHMS: [(u16, &str); 38] = [
    (0x0001, "rsa"),
    (0x0003, "tdes"),
    (0x0004, "sha1"),
    (0x0005, "hmac"),
    (0x0006, "aes"),
    (0x0007, "mgf1"),
    (0x0008, "keyedhash"),
    (0x000a, "xor"),
    (0x000b, "sha256"),
    (0x000c, "sha384"),
    (0x000d, "sha512"),
    (0x0012, "sm3_256"),
    (0x0013, "sm4"),
    (0x0014, "rsassa"),
    (0x0015, "rsaes"),
    (0x0016, "rsapss"),
    (0x0017, "oaep"),
    (0x0018, "ecdsa"),
    (0x0019, "ecdh"),
    (0x001a, "ecdaa"),
    (0x001b, "sm2"),
    (0x001c, "ecschnorr"),
    (0x001d, "ecmqv"),
    (0x0020, "kdf1_sp800_56a"),
    (0x0021, "kdf2"),
    (0x0022, "kdf1_sp800_108"),
    (0x0023, "ecc"),
    (0x0025, "symcipher"),
    (0x0026, "camellia"),
    (0x0027, "sha3_256"),
    (0x0028, "sha3_384"),
    (0x0029, "sha3_512"),
    (0x003f, "cmac"),
    (0x0040, "ctr"),
    (0x0041, "ofb"),
    (0x0042, "cbc"),
    (0x0043, "cfb"),
    (0x0044, "ecb"),
];

/// TCG Algorithm Registry, TPM_ECC_CURVE.
const CURVES: [(u16, &str); 8] = [
    (0x0001, "p192"),
    (0x0002, "p224"),
    (0x0003, "p256"),
    (0x0004, "p384"),
    (0x0005, "p521"),
    (0x0010, "bn_p256"),
    (0x0011, "bn_p638"),
    (0x0020, "sm2_p256"),
];

#[cfg(test)]
mod tests {
    use protocol::tpm::alg::Digest;

    use super::*;

    fn fingerprint() -> Fingerprint {
        let mut pcrs = PcrValues::new();
        for index in 0..24 {
            pcrs.set(HashAlg::Sha256, index, Digest::zero(HashAlg::Sha256)).unwrap();
        }
        Fingerprint {
            pcrs,
            update_counter: 7,
            persistent: vec![0x8101_0001],
            nv: vec![],
            lockout_counter: 0,
            boots: (3, 0),
        }
    }

    #[test]
    fn every_change_is_told_and_only_the_kernels_own_is_overlooked() {
        let before = fingerprint();
        assert!(before.changes(&before, false).is_empty());
        let changed = |change: &dyn Fn(&mut Fingerprint), ima| {
            let mut after = before.clone();
            change(&mut after);
            before.changes(&after, ima)
        };
        let extend = |index| {
            move |after: &mut Fingerprint| {
                after.update_counter += 1;
                after.pcrs.set(HashAlg::Sha256, index, HashAlg::Sha256.digest(&[b"x"])).unwrap();
            }
        };
        assert_eq!(changed(&extend(10), true).len(), 0);
        assert_eq!(changed(&extend(10), false).len(), 2);
        assert!(changed(&extend(13), true)[0].starts_with("PCR 13 of bank sha256 was "));
        assert_eq!(changed(&|after| after.persistent.push(0x8101_0002), true).len(), 1);
        assert_eq!(changed(&|after| after.nv.push(0x0180_0001), true).len(), 1);
        assert_eq!(changed(&|after| after.lockout_counter = 1, true).len(), 1);
        assert_eq!(changed(&|after| after.boots = (3, 1), true).len(), 1);
    }

    #[test]
    fn numbers_that_are_not_known_are_shown_as_numbers() {
        assert_eq!(name_of(0x000b, &ALGORITHMS), "sha256");
        assert_eq!(name_of(0x7ffe, &ALGORITHMS), "0x7ffe");
    }
}
