//! Measured-boot reference states, as Keylime's `example` policy judges by them.
//!
//! That policy accepts much by event type alone: everything in PCR 1, 2 and 5, the authorities in PCR 7, GRUB's commands
//! in PCR 8, the files that GRUB reads in PCR 9. Types are not protected by the TPM, so these PCRs are not judged as a whole here; what the
//! reference state says of single events in them is.

use protocol::limits::MAX_COMMAND_LINE_LEN;
use serde_json::{Map, Value};

use super::{ImportError, Notes, digest, list, regex, shown};
use crate::appraisal::policy::write::{BootText, ChainText, CommandLineText, DigestSet, EventText};

const KNOWN: [&str; 10] =
    ["scrtm_and_bios", "pk", "kek", "db", "dbx", "vendor_db", "mokdig", "mokxdig", "kernels", "has_secureboot"];

/// MokListTrusted is one byte, 0 or 1: SHA-256 of either.
const MOK_LIST_TRUSTED: [&str; 2] = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "4bf5122f344554c53bde2ebb8cd2b7e3d1600ad631c385a5d7cce23c7785459a",
];

/// Adds a reference state to the rules.
pub(super) fn add(state: &Map<String, Value>, boot: &mut BootText, notes: &mut Notes) -> Result<(), ImportError> {
    notes.unknown_fields(state, "", &KNOWN);
    let secure_boot = match state.get("has_secureboot") {
        None | Some(Value::Null) => true,
        Some(Value::Bool(on)) => *on,
        Some(_) => return Err(ImportError::Shape { place: "has_secureboot".into(), expected: "true or false" }),
    };
    if boot.secure_boot.is_some_and(|on| on != secure_boot) {
        notes.add(
            "secure_boot",
            "has_secureboot",
            "one reference state wants Secure Boot on and another off: it is not judged",
        );
        boot.secure_boot = None;
    } else {
        boot.secure_boot = Some(secure_boot);
    }
    firmware(list(state.get("scrtm_and_bios"), "scrtm_and_bios")?, boot, notes)?;
    keys(state, secure_boot, boot, notes)?;
    mok_lists(state, boot, notes)?;
    for (at, kernel) in list(state.get("kernels"), "kernels")?.iter().enumerate() {
        let place = format!("kernels.{at}");
        let Value::Object(kernel) = kernel else {
            return Err(ImportError::Shape { place, expected: "an object" });
        };
        chains(kernel, &place, secure_boot, boot, notes)?;
    }
    if boot.pcrs.is_empty() {
        notes.add(
            "events_by_type",
            "",
            "Keylime accepted any event of some types in PCR 1, 2, 5, 7, 8 and 9; types are not protected, so these \
             PCRs are not judged as a whole, only by the rules on single events: add them to `boot.pcrs` with the \
             events that you allow",
        );
    }
    // Of these the reference state lists every event; in PCR 3 and 6 it allows none but the separator.
    boot.pcrs.extend([0, 3, 4, 6, 14]);
    Ok(())
}

/// The digest that the log is judged by: SHA-256 or longer, where there is one.
fn event_digests(value: &Value, place: &str, notes: &mut Notes) -> Result<DigestSet, ImportError> {
    let Value::Object(map) = value else {
        return Err(ImportError::Shape { place: shown(place), expected: "an object of digests by algorithm" });
    };
    let mut set = DigestSet::new();
    for (bank, value) in map {
        let text = value.as_str().unwrap_or_default();
        match digest(&format!("{bank}:{}", text.strip_prefix("0x").unwrap_or(text))) {
            Some(digest) => {
                set.insert(digest);
            }
            None => notes.add(
                "digest_unreadable",
                format!("{place}.{bank}"),
                format!("`{}` is no {} digest, left out", shown(text), shown(bank)),
            ),
        }
    }
    if set.iter().any(|digest| digest.len() > 20) {
        set.retain(|digest| digest.len() > 20);
    }
    Ok(set)
}

/// `scrtm_and_bios`: what the firmware measured of itself into PCR 0.
fn firmware(sets: &[Value], boot: &mut BootText, notes: &mut Notes) -> Result<(), ImportError> {
    let before = boot.events.iter().any(|event| event.pcr == 0);
    let (mut versions, mut blobs) = (Vec::new(), Vec::new());
    for (at, set) in sets.iter().enumerate() {
        let place = format!("scrtm_and_bios.{at}");
        let Value::Object(set) = set else { return Err(ImportError::Shape { place, expected: "an object" }) };
        notes.unknown_fields(set, &place, &["scrtm", "platform_firmware"]);
        if let Some(version) = set.get("scrtm") {
            versions.push(event_digests(version, &format!("{place}.scrtm"), notes)?);
        }
        let place = format!("{place}.platform_firmware");
        let list = list(set.get("platform_firmware"), &place)?;
        let digests = (0..).zip(list).map(|(number, blob)| event_digests(blob, &format!("{place}.{number}"), notes));
        blobs.push(digests.collect::<Result<Vec<_>, _>>()?);
    }
    let one = sets.len() == 1 && !before;
    if !one && (sets.len() > 1 || before) {
        notes.add(
            "firmware_sets",
            "scrtm_and_bios",
            "several firmware versions: the events of each are allowed, but that all are of the same version is not \
             judged",
        );
        // What one alternative requires, another may lack.
        boot.events.iter_mut().filter(|event| event.pcr == 0).for_each(|event| event.required = false);
    }
    let version = versions.into_iter().flatten().collect();
    push_event(boot, "firmware version (S-CRTM)", 0, version, one);
    if one {
        for (number, digests) in (1..).zip(blobs.into_iter().flatten()) {
            push_event(boot, &format!("firmware blob {number}"), 0, digests, true);
        }
    } else {
        push_event(boot, "firmware blobs", 0, blobs.into_iter().flatten().flatten().collect(), false);
    }
    Ok(())
}

fn push_event(boot: &mut BootText, name: &str, pcr: u8, digests: DigestSet, required: bool) {
    if digests.is_empty() {
        return;
    }
    // Files that say the same say it once.
    match boot.events.iter_mut().find(|event| event.name == name && event.pcr == pcr) {
        Some(event) => {
            event.digests.extend(digests);
            event.required &= required;
        }
        None => boot.events.push(EventText { name: name.to_owned(), pcr, digests, required }),
    }
}

/// Secure Boot's key variables: what pk, kek and db may hold, and what dbx has to.
fn keys(
    state: &Map<String, Value>,
    secure_boot: bool,
    boot: &mut BootText,
    notes: &mut Notes,
) -> Result<(), ImportError> {
    let mut owners = false;
    for name in ["pk", "kek", "db", "dbx"] {
        let Some(value) = state.get(name) else { continue };
        let entries = entries(list(Some(value), name)?, name, &mut owners, notes)?;
        // Without Secure Boot an empty list accepts whatever is there.
        if entries.is_empty() && !secure_boot {
            continue;
        }
        let rule = boot.keys.entry(name.to_owned()).or_default();
        if name == "dbx" {
            rule.require.extend(entries);
        } else {
            rule.only.get_or_insert_default().extend(entries);
        }
    }
    if state.contains_key("vendor_db") {
        let vendor = entries(list(state.get("vendor_db"), "vendor_db")?, "vendor_db", &mut owners, notes)?;
        let db = boot.keys.get("db").and_then(|rule| rule.only.clone()).unwrap_or_default();
        let rule = boot.keys.entry("authorities".to_owned()).or_default();
        rule.only.get_or_insert_default().extend(vendor.into_iter().chain(db));
    } else if !boot.keys.contains_key("authorities") {
        notes.add(
            "authorities",
            "",
            "which certificates started images were verified with is not judged, as in Keylime, since their digests \
             are: `boot.keys.authorities` would list them",
        );
    }
    if owners {
        notes.add(
            "signature_owner",
            "",
            "entries of pk, kek, db and dbx are named by their content alone: `SignatureOwner` is left out",
        );
    }
    Ok(())
}

/// The names of signature-list entries: SHA-256 of a certificate's DER, or the hash that the entry is.
fn entries(list: &[Value], name: &str, owners: &mut bool, notes: &mut Notes) -> Result<DigestSet, ImportError> {
    let mut set = DigestSet::new();
    for (at, entry) in list.iter().enumerate() {
        let place = format!("{name}.{at}");
        let Value::Object(entry) = entry else { return Err(ImportError::Shape { place, expected: "an object" }) };
        notes.unknown_fields(entry, &place, &["SignatureOwner", "SignatureData"]);
        *owners |= entry.contains_key("SignatureOwner");
        let text = entry.get("SignatureData").and_then(Value::as_str).unwrap_or_default();
        match hex::decode(text.strip_prefix("0x").unwrap_or(text)) {
            Ok(data) if data.len() == 32 => {
                set.insert(data);
            }
            Ok(data) if data.first() == Some(&0x30) && data.len() > 64 => {
                set.insert(ring::digest::digest(&ring::digest::SHA256, &data).as_ref().to_vec());
            }
            _ => notes.add("key_unreadable", place, "neither a certificate nor a SHA-256 hash, left out"),
        }
    }
    Ok(set)
}

/// `mokdig` and `mokxdig`: shim's lists, measured into PCR 14.
fn mok_lists(state: &Map<String, Value>, boot: &mut BootText, notes: &mut Notes) -> Result<(), ImportError> {
    for (field, name) in [("mokdig", "MokList"), ("mokxdig", "MokListX")] {
        let mut set = DigestSet::new();
        for (at, value) in list(state.get(field), field)?.iter().enumerate() {
            set.extend(event_digests(value, &format!("{field}.{at}"), notes)?);
        }
        push_event(boot, name, 14, set, false);
    }
    let trusted = MOK_LIST_TRUSTED.iter().filter_map(|text| hex::decode(text).ok()).collect();
    push_event(boot, "MokListTrusted", 14, trusted, false);
    Ok(())
}

/// One kernel: the images started, the initrd, the command line.
fn chains(
    kernel: &Map<String, Value>,
    place: &str,
    secure_boot: bool,
    boot: &mut BootText,
    notes: &mut Notes,
) -> Result<(), ImportError> {
    const FIELDS: [&str; 6] = [
        "shim_authcode_sha256",
        "grub_authcode_sha256",
        "kernel_authcode_sha256",
        "vmlinuz_plain_sha256",
        "initrd_plain_sha256",
        "kernel_cmdline",
    ];
    notes.unknown_fields(kernel, place, &FIELDS);
    let field = |name: &str| -> Result<Option<Vec<u8>>, ImportError> {
        let Some(value) = kernel.get(name) else { return Ok(None) };
        let place = format!("{place}.{name}");
        let text = value.as_str().ok_or_else(|| ImportError::Shape { place: place.clone(), expected: "a text" })?;
        let found = digest(text).filter(|digest| digest.len() == 32);
        // A chain without one of its links would accept anything in its place.
        found.map(Some).ok_or(ImportError::Shape { place, expected: "a SHA-256 digest" })
    };
    let (shim, grub) = (field("shim_authcode_sha256")?, field("grub_authcode_sha256")?);
    let (image, plain) = (field("kernel_authcode_sha256")?, field("vmlinuz_plain_sha256")?);
    let initrd = field("initrd_plain_sha256")?;
    // Without Secure Boot GRUB does not have the kernel verified, and so nothing measures it as a started image.
    let image = image.filter(|_| secure_boot);
    let plain = plain.filter(|_| !secure_boot);
    if secure_boot && kernel.contains_key("vmlinuz_plain_sha256") {
        notes.add(
            "kernel_file",
            format!("{place}.vmlinuz_plain_sha256"),
            "with Secure Boot the kernel is judged as a started image; the digest of its file is left out, as in Keylime",
        );
    }
    let mut images: Vec<Vec<u8>> = [shim, grub, image.clone()].into_iter().flatten().collect();
    if images.is_empty() {
        return Err(ImportError::Shape { place: shown(place), expected: "a kernel with digests of its images" });
    }
    let files = [plain, initrd].into_iter().flatten().collect();
    let command_line = match kernel.get("kernel_cmdline") {
        None => None,
        Some(Value::String(text)) => command_line(text, &format!("{place}.kernel_cmdline"), notes),
        Some(_) => {
            return Err(ImportError::Shape { place: format!("{place}.kernel_cmdline"), expected: "a text" });
        }
    };
    let number = 1 + boot.chains.iter().filter(|chain| !chain.name.ends_with(TWICE)).count();
    let name = format!("kernel {number}");
    boot.chains.push(ChainText {
        name: name.clone(),
        images: images.clone(),
        files: DigestSet::clone(&files),
        command_line: command_line.clone(),
    });
    if let Some(image) = image {
        // GRUB has the kernel measured once more on some machines; Keylime allows both.
        images.push(image);
        boot.chains.push(ChainText { name: format!("{name}{TWICE}"), images, files, command_line });
    }
    Ok(())
}

const TWICE: &str = ", measured twice";

fn command_line(text: &str, place: &str, notes: &mut Notes) -> Option<CommandLineText> {
    match regex::line_pattern(text) {
        Ok(line) if line.text.len() > MAX_COMMAND_LINE_LEN || line.text.chars().any(char::is_control) => {
            let message = "no command line is that long or holds control characters, so it is not judged";
            notes.add("command_line_left_out", place, message);
            None
        }
        Ok(line) => {
            if line.narrowed {
                notes.add("command_line_narrowed", place, "a `.` that stood for any character is a dot now");
            }
            Some(if line.is_pattern { CommandLineText::Pattern(line.text) } else { CommandLineText::Exact(line.text) })
        }
        Err(error) => {
            notes.add(
                "command_line_left_out",
                place,
                format!("`{}` is left out, so the command line is not judged: {error}", shown(text)),
            );
            None
        }
    }
}
