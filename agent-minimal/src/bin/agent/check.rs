//! `--check`: what is missing before the first boot, and what to do about it. Nothing is changed.

use std::{fmt::Write as _, time::Duration};

use protocol::{
    crypto::manifest::{DELIVERED_EVENT, TenantPublicKey, pins_event},
    message::enrol::Wants,
    tpm::{
        alg::{Digest, HashAlg},
        pcr::{self, PcrSelectionList},
    },
};

use crate::{
    config::{Origins, Settings},
    entropy::{Kernel, Rng},
    harden,
    log::Escaped,
    tls::{self, Connector},
    tpm::Tpm,
    x509,
};

/// One thing that was looked at.
#[derive(Debug, Eq, PartialEq)]
struct Item {
    name: String,
    /// What was found, or what is missing, and then what to do.
    result: Result<String, (String, &'static str)>,
}

/// Everything that was looked at.
#[derive(Debug, Default)]
struct Report(Vec<Item>);

impl Report {
    fn ok(&mut self, name: impl Into<String>, found: impl Into<String>) {
        self.0.push(Item { name: name.into(), result: Ok(found.into()) });
    }

    fn missing(&mut self, name: impl Into<String>, what: impl ToString, advice: &'static str) {
        self.0.push(Item { name: name.into(), result: Err((what.to_string(), advice)) });
    }

    fn is_complete(&self) -> bool {
        self.0.iter().all(|item| item.result.is_ok())
    }

    fn text(&self) -> String {
        let mut out = String::new();
        for Item { name, result } in &self.0 {
            // Writing to a string does not fail.
            let _ = match result {
                Ok(found) => writeln!(out, "ok       {name}: {found}"),
                Err((what, advice)) => writeln!(out, "missing  {name}: {what}\n         -> {advice}"),
            };
        }
        let missing = self.0.iter().filter(|item| item.result.is_err()).count();
        let _ = match missing {
            0 => writeln!(out, "nothing is missing"),
            count => writeln!(out, "{count} of {} missing", self.0.len()),
        };
        out
    }

    fn json(&self) -> String {
        let mut out = format!("{{\"ok\":{},\"checks\":[", self.is_complete());
        for (index, Item { name, result }) in self.0.iter().enumerate() {
            if index > 0 {
                out.push(',');
            }
            field(&mut out, "{\"name\":\"", name);
            let (found, advice) = match result {
                Ok(found) => (found, None),
                Err((what, advice)) => (what, Some(advice)),
            };
            let _ = write!(out, ",\"ok\":{}", result.is_ok());
            field(&mut out, ",\"found\":\"", found);
            if let Some(advice) = advice {
                field(&mut out, ",\"advice\":\"", advice);
            }
            out.push('}');
        }
        out.push_str("]}\n");
        out
    }
}

fn field(out: &mut String, head: &str, value: &str) {
    out.push_str(head);
    let _ = Escaped(out).write_str(value);
    out.push('"');
}

/// Looks at everything; returns what to print, and whether nothing is missing.
pub(crate) fn run(settings: &Settings, json: bool) -> (String, bool) {
    let mut report = Report::default();
    let kernel = Kernel::gather(Duration::ZERO);
    if kernel.is_ready() {
        report.ok("random", "the kernel's pool is ready");
    } else {
        report.missing("random", "the kernel's pool is not ready yet", "wait, or rely on the TPM's generator");
    }
    clock(&mut report);
    let keys = tenant_keys(&mut report, settings);
    tpm(&mut report, settings, &kernel, keys.as_deref());
    if settings.wants == Wants::Payload {
        payload_dir(&mut report, settings);
    }
    report.ok("confinement", harden::offered());
    servers(&mut report, settings, &kernel);
    (if json { report.json() } else { report.text() }, report.is_complete())
}

fn clock(report: &mut Report) {
    match tls::clock().now {
        Some(now) => report.ok("clock", format!("plausible, {now} s since 1970")),
        None => report.missing(
            "clock",
            "shows a date before this program was made",
            "set it (RTC, NTP); until then the validity of certificates is not checked",
        ),
    }
}

/// The keys; `None` if they cannot be used.
fn tenant_keys(report: &mut Report, settings: &Settings) -> Option<Vec<TenantPublicKey>> {
    if settings.wants == Wants::Attest && settings.tenant_keys.is_empty() {
        report.ok("tenant-key", "no key is pinned: no payload is taken");
        return Some(Vec::new());
    }
    let advice = "set tenant-key to the PEM file that the operator's `trefoil agent-config` names";
    match x509::tenant_keys(&settings.tenant_keys) {
        Ok(keys) if keys.is_empty() => report.missing("tenant-key", "no key is pinned", advice),
        Ok(keys) => {
            let Origins { tenant_keys, autorun, .. } = settings.origins;
            report.ok("tenant-key", format!("{} pinned {tenant_keys}", keys.len()));
            report.ok("autorun", format!("{} {autorun}", if settings.autorun { "on" } else { "off" }));
            return Some(keys);
        }
        Err(why) => report.missing("tenant-key", why, advice),
    }
    None
}

fn tpm(report: &mut Report, settings: &Settings, kernel: &Kernel, keys: Option<&[TenantPublicKey]>) {
    let mut tpm = crate::tpm::open(&settings.tcti, Rng::provisional(kernel));
    match tpm.about() {
        Ok(about) => {
            let version = about.firmware_version;
            let (a, b, c, d) = (version >> 48, version >> 32 & 0xffff, version >> 16 & 0xffff, version & 0xffff);
            report.ok("tpm", format!("made by {}, firmware {a}.{b}.{c}.{d}", about.manufacturer_name()));
        }
        Err(why) => {
            report.missing("tpm", why, "turn the TPM on in the firmware's setup, or set tcti to where it is");
            return;
        }
    }
    match tpm.identity(settings.ek) {
        Ok(identity) => {
            let kind = identity.ek.name();
            match identity.ek_chain.as_slice() {
                [] => report.missing(
                    "ek certificate",
                    format!("the TPM holds none for its {kind} EK"),
                    "the control plane has to know this node id from a list (node add --id), or its policy accept \
                     hardware-unproven",
                ),
                [certificate, rest @ ..] => report.ok(
                    "ek certificate",
                    format!("{kind}, {} bytes, and {} of its issuers", certificate.len(), rest.len()),
                ),
            }
            report.ok("node id", identity.node_id.to_string());
            let mut name = String::with_capacity(68);
            for byte in identity.ak_name {
                let _ = write!(name, "{byte:02x}");
            }
            report.ok("ak name", name);
        }
        Err(why) => report.missing("node id", why, "set ek to a kind of key that this TPM has"),
    }
    phase_pcr(report, &mut *tpm, settings, keys);
}

/// What the phase PCR shows of this boot.
fn phase_pcr(report: &mut Report, tpm: &mut dyn Tpm, settings: &Settings, keys: Option<&[TenantPublicKey]>) {
    let (index, bank) = (settings.phase_pcr, HashAlg::Sha256);
    let name = format!("phase-pcr {index}");
    let Some(selection) = PcrSelectionList::single(bank, 1 << index) else { return };
    let value = match tpm.pcr_read(&selection) {
        Ok(values) => values.get(bank, index).copied(),
        Err(why) => return report.missing(name, why, "see the line about the TPM"),
    };
    let Some(value) = value else {
        return report.missing(name, "the TPM has no SHA-256 bank", "turn the SHA-256 bank on in the firmware's setup");
    };
    let zero = Digest::zero(bank);
    let after = |old: &Digest, event: &[u8]| pcr::extend(bank, old, &pcr::event_digest(bank, event)).ok();
    let pinned = keys.and_then(|keys| pins_event(keys, settings.autorun).ok()).and_then(|event| after(&zero, &event));
    let delivered = pinned.as_ref().and_then(|pinned| after(pinned, DELIVERED_EVENT));
    if value == zero {
        report.ok(name, "untouched in this boot");
    } else if keys.is_some_and(<[_]>::is_empty) {
        report.ok(name, "extended in this boot; by whom cannot be said without tenant-key");
    } else if Some(value) == pinned {
        report.ok(name, "holds this configuration's pins, no payload yet");
    } else if Some(value) == delivered {
        report.ok(name, "holds this configuration's pins and a delivered payload");
    } else {
        report.missing(
            name,
            "was extended by something else, or under another configuration",
            "set phase-pcr to a PCR from 8 to 15 that nothing else uses; a new configuration counts from the next boot",
        );
    }
}

fn payload_dir(report: &mut Report, settings: &Settings) {
    let (directory, path) = (settings.payload_home(), &settings.payload_dir);
    match directory.room() {
        Ok(free) if directory.may_be_swapped() => report.missing(
            "payload-dir",
            format!("in memory, {free} bytes free, but may be swapped out"),
            "mount it with noswap (Linux 6.4), use ramfs, or turn swap off",
        ),
        Ok(free) => report.ok("payload-dir", format!("{}: in memory, {free} bytes free", path.display())),
        Err(why) => report.missing("payload-dir", why, "mount a tmpfs above it, or set payload-dir"),
    }
}

fn servers(report: &mut Report, settings: &Settings, kernel: &Kernel) {
    let Some(ca) = &settings.ca else {
        return report.missing(
            "ca",
            "no authority is pinned",
            "set ca to the control plane's CA certificate (server-ca.pem)",
        );
    };
    let mut connector = match Connector::new(ca, Rng::provisional(kernel)) {
        Ok(connector) => connector,
        Err(why) => return report.missing("ca", why, "set ca to the control plane's CA certificate in PEM form"),
    };
    report.ok("ca", ca.display().to_string());
    if settings.servers.is_empty() {
        report.missing("server", "none is set", "set server to the gateway's HOST:PORT");
    }
    if let Err(why) = harden::confine(settings) {
        return report.missing("confinement", why, "run it as root, or as a plain user");
    }
    for server in &settings.servers {
        let name = format!("server {server}");
        match connector.connect(server) {
            Ok(connection) => {
                report.ok(name, "reached, and it proved its certificate");
                connection.close();
            }
            Err(why) => report.missing(
                name,
                why,
                "check name, port, network, firewall, and that its certificate names it and is from the pinned ca",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut report = Report::default();
        report.ok("tpm", "made by \"IBM\"");
        report.missing("ca", "none", "set ca");
        report
    }

    #[test]
    fn text_says_what_to_do() {
        assert_eq!(
            report().text(),
            "ok       tpm: made by \"IBM\"\nmissing  ca: none\n         -> set ca\n1 of 2 missing\n"
        );
        assert!(!report().is_complete());
        assert!(Report::default().is_complete());
    }

    #[test]
    fn json_is_one_escaped_object() {
        assert_eq!(
            report().json(),
            "{\"ok\":false,\"checks\":[{\"name\":\"tpm\",\"ok\":true,\"found\":\"made by \\\"IBM\\\"\"},\
             {\"name\":\"ca\",\"ok\":false,\"found\":\"none\",\"advice\":\"set ca\"}]}\n"
        );
    }

    #[test]
    fn nothing_set_is_named_item_by_item() {
        let settings = Settings {
            tcti: crate::config::Tcti::Device("/nonexistent/tpmrm0".into()),
            payload_dir: "/proc/trefoil/payload".into(),
            ..Settings::default()
        };
        let (text, complete) = run(&settings, false);
        assert!(!complete);
        for name in ["tpm", "tenant-key", "payload-dir", "ca"] {
            assert!(text.contains(&format!("missing  {name}: ")), "{name}: {text}");
        }
    }
}
