//! Boot logs to be: TCG crypto-agile logs with every field open, of a machine with Secure Boot, shim and GRUB.
//!
//! TCG PC Client Platform Firmware Profile, "Event Logging"; UEFI, EFI_SIGNATURE_LIST.

use std::collections::BTreeMap;

use protocol::tpm::alg::{Digest, HashAlg};

use super::tpm::Parts;

pub(super) const EV_POST_CODE: u32 = 0x0000_0001;
pub(super) const EV_NO_ACTION: u32 = 0x0000_0003;
pub(super) const EV_SEPARATOR: u32 = 0x0000_0004;
pub(super) const EV_S_CRTM_VERSION: u32 = 0x0000_0008;
pub(super) const EV_IPL: u32 = 0x0000_000d;
pub(super) const EV_EFI_VARIABLE_DRIVER_CONFIG: u32 = 0x8000_0001;
pub(super) const EV_EFI_BOOT_SERVICES_APPLICATION: u32 = 0x8000_0003;
pub(super) const EV_EFI_ACTION: u32 = 0x8000_0007;
pub(super) const EV_EFI_VARIABLE_AUTHORITY: u32 = 0x8000_00e0;

/// A GUID's 16 bytes, as UEFI writes it.
fn guid(first: u32, second: u16, third: u16, rest: [u8; 8]) -> Vec<u8> {
    [&first.to_le_bytes()[..], &second.to_le_bytes(), &third.to_le_bytes(), &rest].concat()
}

fn global() -> Vec<u8> {
    guid(0x8be4_df61, 0x93ca, 0x11d2, [0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c])
}

fn image_security() -> Vec<u8> {
    guid(0xd719_b2cb, 0x3d3a, 0x4596, [0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65, 0x6f])
}

fn shim_lock() -> Vec<u8> {
    guid(0x605d_ab50, 0xe046, 0x4300, [0xab, 0xb6, 0x3d, 0xd8, 0x10, 0xdd, 0x8b, 0x23])
}

fn owner() -> Vec<u8> {
    guid(0x7472_6566, 0x6f69, 0x6c2d, *b"corpus!!")
}

fn signature_list(kind: Vec<u8>, entries: &[Vec<u8>]) -> Vec<u8> {
    let size = entries.first().map_or(0, Vec::len) + 16;
    let body: Vec<u8> = entries.iter().flat_map(|entry| [owner(), entry.clone()].concat()).collect();
    let len = (28 + body.len()) as u32;
    [kind, len.to_le_bytes().to_vec(), vec![0; 4], (size as u32).to_le_bytes().to_vec(), body].concat()
}

/// An EFI_SIGNATURE_LIST of one certificate.
pub(super) fn certificate_list(der: &[u8]) -> Vec<u8> {
    let kind = guid(0xa5c0_59a1, 0x94e4, 0x4aa7, [0x87, 0xb5, 0xab, 0x15, 0x5c, 0x2b, 0xf0, 0x72]);
    signature_list(kind, &[der.to_vec()])
}

/// An EFI_SIGNATURE_LIST of SHA-256 digests.
pub(super) fn hash_list(hashes: &[Vec<u8>]) -> Vec<u8> {
    let kind = guid(0xc1c4_1626, 0x504c, 0x4092, [0xac, 0xa9, 0x41, 0xf9, 0x36, 0x93, 0x43, 0x28]);
    signature_list(kind, hashes)
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

/// UEFI_VARIABLE_DATA.
fn variable_data(guid: Vec<u8>, name: &str, data: &[u8]) -> Vec<u8> {
    let name_len = name.encode_utf16().count() as u64;
    let len = data.len() as u64;
    [guid, name_len.to_le_bytes().to_vec(), len.to_le_bytes().to_vec(), utf16(name), data.to_vec()].concat()
}

/// An event to be.
#[derive(Clone, Debug)]
pub(super) struct Event {
    pub(super) pcr: u32,
    pub(super) kind: u32,
    pub(super) data: Vec<u8>,
    /// What its digests are of.
    pub(super) preimage: Vec<u8>,
    /// A name to find it by; not in the log.
    pub(super) label: &'static str,
}

impl Event {
    /// An event whose digest is of its data.
    pub(super) fn plain(label: &'static str, pcr: u32, kind: u32, data: &[u8]) -> Self {
        Self { pcr, kind, data: data.to_vec(), preimage: data.to_vec(), label }
    }

    /// An event whose digest is of something else than its data.
    pub(super) fn of(label: &'static str, pcr: u32, kind: u32, data: &[u8], preimage: &[u8]) -> Self {
        Self { preimage: preimage.to_vec(), ..Self::plain(label, pcr, kind, data) }
    }

    /// A variable that configures Secure Boot.
    pub(super) fn variable(label: &'static str, data: &[u8]) -> Self {
        let guid = if matches!(label, "db" | "dbx") { image_security() } else { global() };
        Self::plain(label, 7, EV_EFI_VARIABLE_DRIVER_CONFIG, &variable_data(guid, label, data))
    }

    /// What an image was verified with: a certificate of db.
    pub(super) fn authority(der: &[u8]) -> Self {
        let data = variable_data(image_security(), "db", &[owner(), der.to_vec()].concat());
        Self::plain("authority", 7, EV_EFI_VARIABLE_AUTHORITY, &data)
    }

    /// shim's revocation level.
    pub(super) fn sbat(level: &str) -> Self {
        let data = variable_data(shim_lock(), "SbatLevel", level.as_bytes());
        Self::plain("sbat", 7, EV_EFI_VARIABLE_AUTHORITY, &data)
    }

    /// A started image: its digest is that of the image.
    pub(super) fn image(label: &'static str, content: &str) -> Self {
        // UEFI_IMAGE_LOAD_EVENT: address, length, link time address, length of the device path, and the path's end.
        let data = [&[0; 24][..], &4u64.to_le_bytes(), &[0x7f, 0xff, 4, 0]].concat();
        Self::of(label, 4, EV_EFI_BOOT_SERVICES_APPLICATION, &data, content.as_bytes())
    }

    /// GRUB's kernel command line.
    pub(super) fn command_line(text: &str) -> Self {
        let data = [b"kernel_cmdline: ", text.as_bytes(), &[0]].concat();
        Self::of("command line", 8, EV_IPL, &data, text.as_bytes())
    }

    pub(super) fn separator(pcr: u32, value: u32) -> Self {
        Self::plain("separator", pcr, EV_SEPARATOR, &value.to_le_bytes())
    }

    pub(super) const fn is_extended(&self) -> bool {
        self.kind != EV_NO_ACTION
    }

    fn digest(&self, bank: HashAlg) -> Vec<u8> {
        if self.is_extended() { bank.digest(&[&self.preimage]).to_vec() } else { vec![0; bank.digest_len()] }
    }

    /// Its TCG_PCR_EVENT2.
    pub(super) fn parts(&self, banks: &[HashAlg]) -> Parts {
        let mut parts = vec![
            ("pcrIndex", self.pcr.to_le_bytes().to_vec()),
            ("eventType", self.kind.to_le_bytes().to_vec()),
            ("digests.count", (banks.len() as u32).to_le_bytes().to_vec()),
        ];
        for bank in banks {
            parts.push(("digests.hashAlg", bank.id().to_le_bytes().to_vec()));
            parts.push(("digests.digest", self.digest(*bank)));
        }
        parts.push(("eventSize", (self.data.len() as u32).to_le_bytes().to_vec()));
        parts.push(("event", self.data.clone()));
        parts
    }

    fn encode(&self, banks: &[HashAlg]) -> Vec<u8> {
        super::tpm::join(&self.parts(banks))
    }
}

/// A boot log to be.
#[derive(Clone, Debug)]
pub(super) struct BootLog {
    pub(super) banks: Vec<HashAlg>,
    pub(super) events: Vec<Event>,
}

/// The certificates and images that the machine's firmware knows.
#[derive(Clone, Debug)]
pub(super) struct Firmware {
    pub(super) pk: Vec<u8>,
    pub(super) kek: Vec<u8>,
    pub(super) db: Vec<u8>,
    pub(super) revoked: Vec<Vec<u8>>,
}

/// The kernel's command line on the machine.
pub(super) const COMMAND_LINE: &str = "root=/dev/vda1 ro quiet";

impl BootLog {
    /// A good machine's.
    pub(super) fn good(firmware: &Firmware) -> Self {
        let mut startup = b"StartupLocality\0".to_vec();
        startup.push(3);
        let mut events = vec![
            Event::plain("locality", 0, EV_NO_ACTION, &startup),
            Event::plain("crtm", 0, EV_S_CRTM_VERSION, &utf16("1.42\0")),
            Event::plain("post code", 0, EV_POST_CODE, b"ACPI DATA"),
            Event::variable("SecureBoot", &[1]),
            Event::variable("PK", &certificate_list(&firmware.pk)),
            Event::variable("KEK", &certificate_list(&firmware.kek)),
            Event::variable("db", &certificate_list(&firmware.db)),
            Event::variable("dbx", &hash_list(&firmware.revoked)),
            Event::plain("action", 4, EV_EFI_ACTION, b"Calling EFI Application from Boot Option"),
        ];
        events.extend((0..8).map(|pcr| Event::separator(pcr, 0)));
        events.extend([
            Event::authority(&firmware.db),
            Event::image("shim", "shim 15.8"),
            Event::sbat("sbat,1,2024010900\nshim,4\ngrub,3\n"),
            Event::of("moklist", 14, EV_IPL, b"MokList\0", b"contents of MokList"),
            Event::image("grub", "grub 2.12"),
            Event::command_line(COMMAND_LINE),
            Event::of("initrd", 9, EV_IPL, b"(hd0,gpt2)/initrd.img\0", b"initrd 6.1"),
            Event::image("kernel", "kernel 6.1"),
        ]);
        Self { banks: vec![HashAlg::Sha1, HashAlg::Sha256], events }
    }

    /// Where an event stands.
    pub(super) fn position(&self, label: &str) -> usize {
        self.events.iter().position(|event| event.label == label).unwrap_or(0)
    }

    /// The event, to change.
    pub(super) fn event(&mut self, label: &str) -> &mut Event {
        let at = self.position(label);
        &mut self.events[at]
    }

    /// The Spec ID event's data.
    pub(super) fn spec_id(&self) -> Parts {
        let mut parts = vec![
            ("signature", b"Spec ID Event03\0".to_vec()),
            ("platformClass", vec![0; 4]),
            ("version", vec![0, 2, 0, 2]),
            ("numberOfAlgorithms", (self.banks.len() as u32).to_le_bytes().to_vec()),
        ];
        for bank in &self.banks {
            parts.push(("algorithmId", bank.id().to_le_bytes().to_vec()));
            parts.push(("digestSize", (bank.digest_len() as u16).to_le_bytes().to_vec()));
        }
        parts.push(("vendorInfoSize", vec![0]));
        parts
    }

    /// The whole log, with this as the Spec ID event's data.
    pub(super) fn encode_with(&self, spec_id: &[u8]) -> Vec<u8> {
        let mut log = [&0u32.to_le_bytes()[..], &EV_NO_ACTION.to_le_bytes(), &[0; 20]].concat();
        log.extend_from_slice(&(spec_id.len() as u32).to_le_bytes());
        log.extend_from_slice(spec_id);
        for event in &self.events {
            log.extend(event.encode(&self.banks));
        }
        log
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        self.encode_with(&super::tpm::join(&self.spec_id()))
    }

    /// The log in the form before the crypto-agile one: TCG_PCClientPCREvent, with SHA-1 alone.
    pub(super) fn encode_sha1(&self) -> Vec<u8> {
        let event = |event: &Event| {
            let len = (event.data.len() as u32).to_le_bytes();
            let digest = event.digest(HashAlg::Sha1);
            [&event.pcr.to_le_bytes()[..], &event.kind.to_le_bytes(), &digest, &len, &event.data].concat()
        };
        self.events.iter().flat_map(event).collect()
    }

    /// The log with one event's bytes replaced.
    pub(super) fn encode_replacing(&self, label: &str, bytes: &[u8]) -> Vec<u8> {
        let at = self.position(label);
        let before = Self { banks: self.banks.clone(), events: self.events[..at].to_vec() }.encode();
        let after: Vec<u8> = self.events[at + 1..].iter().flat_map(|event| event.encode(&self.banks)).collect();
        [before, bytes.to_vec(), after].concat()
    }

    /// The log up to an event, without it.
    pub(super) fn encode_until(&self, label: &str) -> Vec<u8> {
        let at = self.position(label);
        Self { banks: self.banks.clone(), events: self.events[..at].to_vec() }.encode()
    }

    /// What a TPM holds that extended all this: PCRs 0 to 15.
    pub(super) fn replay(&self, bank: HashAlg) -> BTreeMap<u8, Digest> {
        let mut pcrs: BTreeMap<u8, Digest> = (0..16).map(|pcr| (pcr, Digest::zero(bank))).collect();
        let startup = self.events.iter().find(|event| event.data.starts_with(b"StartupLocality\0"));
        if let Some(locality) = startup.and_then(|event| event.data.get(16)) {
            let mut value = vec![0; bank.digest_len()];
            if let Some(last) = value.last_mut() {
                *last = *locality;
            }
            pcrs.insert(0, bank.read_digest(&value).unwrap_or_else(|_| Digest::zero(bank)));
        }
        for event in self.events.iter().filter(|event| event.is_extended()) {
            if let Some(pcr) = u8::try_from(event.pcr).ok().and_then(|index| pcrs.get_mut(&index)) {
                *pcr = bank.digest(&[pcr, &event.digest(bank)]);
            }
        }
        pcrs
    }
}
