use protocol::{
    crypto::manifest::TenantSigningKey,
    tpm::pcr::{PcrSelection, PcrSelectionList, PcrValues},
};

use super::{
    super::{
        ImaReplay,
        boot_log::EV_NO_ACTION,
        ima_log::ImaStart,
        quote::tests::{quote_of, wire},
    },
    *,
};

const SHA256: HashAlg = HashAlg::Sha256;

/// A node in a software TPM's world, and what may be wrong with it.
struct World {
    policy: Option<Policy>,
    values: PcrValues,
    selection: Option<PcrSelectionList>,
    previous: Option<Checkpoint>,
    hardware: Hardware,
    purpose: Purpose,
    phase: Option<PhaseEvents>,
    reset_count: u32,
}

fn tenant_key(byte: u8) -> [u8; 65] {
    let mut secret = String::new();
    (0..32).for_each(|_| secret.push_str(&format!("{byte:02x}")));
    *TenantSigningKey::from_text(&secret).unwrap().public().as_sec1()
}

fn events() -> PhaseEvents {
    PhaseEvents::new(&[tenant_key(1)], false).unwrap()
}

fn reference(index: u8) -> Digest {
    SHA256.digest(&[b"reference", &[index]])
}

fn policy_text(accept: &str, release: &str) -> String {
    format!(
        "version = 1\nname = \"edge\"\naccept = [{accept}]\n[pcrs.sha256]\n0 = [\"{}\"]\n7 = [\"{}\", \"{}\"]\n[release]\n{release}\n",
        reference(0),
        reference(70),
        reference(7)
    )
}

fn policy(accept: &str, release: &str) -> Policy {
    Policy::parse(policy_text(accept, release).as_bytes()).unwrap()
}

impl World {
    /// A certified node in a known state whose pins are measured.
    fn good() -> Self {
        let mut values = PcrValues::new();
        values.set(SHA256, 0, reference(0)).unwrap();
        values.set(SHA256, 7, reference(7)).unwrap();
        values.set(SHA256, 13, events().values(SHA256).0).unwrap();
        Self {
            policy: Some(policy("", "phase_pcr = 13")),
            values,
            selection: None,
            previous: None,
            hardware: Hardware::Certified,
            purpose: Purpose::Bootstrap,
            phase: Some(events()),
            reset_count: 5,
        }
    }

    fn set(mut self, index: u8, value: Digest) -> Self {
        self.values.set(SHA256, index, value).unwrap();
        self
    }

    fn pcrs(&self) -> QuotedPcrs {
        let mut selection = PcrSelectionList::new();
        for bank in HashAlg::ALL {
            let indices: Vec<_> =
                self.values.iter().filter(|(of, ..)| *of == bank).map(|(_, index, _)| index).collect();
            if !indices.is_empty() {
                selection.push(PcrSelection::from_indices(bank, indices).unwrap()).unwrap();
            }
        }
        let selection = self.selection.clone().unwrap_or(selection);
        let quote = quote_of(&self.values, &selection, |attest| attest.clock_info.reset_count = self.reset_count);
        QuotedPcrs::complete(&quote, None, &wire(&self.values), false).unwrap()
    }

    fn judge_with(&self, boot_log: BootLogEvidence<'_>, ima: ImaEvidence<'_>) -> Verdict {
        appraise(&Input {
            purpose: self.purpose,
            policy: self.policy.as_ref(),
            pcrs: &self.pcrs(),
            previous: self.previous.as_ref(),
            hardware: self.hardware,
            boot_log,
            ima,
            phase: self.phase.as_ref(),
        })
    }

    fn judge(&self) -> Verdict {
        self.judge_with(BootLogEvidence::None, ImaEvidence::None)
    }

    fn good_verdict(&self) -> GoodVerdict {
        match self.judge() {
            Verdict::Good(good) => good,
            other => panic!("{other:?}"),
        }
    }

    fn codes(&self) -> Vec<(&'static str, String)> {
        codes(&self.judge())
    }
}

fn codes(verdict: &Verdict) -> Vec<(&'static str, String)> {
    assert!(!matches!(verdict, Verdict::Good(_)), "{verdict:?}");
    verdict.explanation().findings.iter().map(|finding| (finding.code, finding.what.clone())).collect()
}

fn one(code: &'static str, what: &str) -> Vec<(&'static str, String)> {
    vec![(code, what.to_owned())]
}

fn conditions(verdict: &GoodVerdict) -> ReleaseConditions {
    ReleaseConditions { nonce_ms: 1000, now_ms: 1000, policy: Some(verdict.policy()), stopped: false, stands: true }
}

#[test]
fn a_node_in_a_listed_state_is_good_and_the_verdict_says_what_it_does_not_speak_of() {
    let verdict = World::good().judge();
    assert_eq!(verdict.outcome(), Outcome::Good);
    assert_eq!(verdict.summary(), "3 PCRs are as policy `edge` wants them; pins measured");
    let json = verdict.to_json();
    assert_eq!(json["findings"], serde_json::json!([]));
    assert_eq!(
        (&json["hardware"], &json["phase"], &json["epoch"]),
        (&"certified".into(), &"pins".into(), &"first".into())
    );
    let not_checked = verdict.explanation().not_checked.join("\n");
    assert!(not_checked.contains("boot log: the node has none") && not_checked.contains("IMA: the node has no list"));
    let checkpoint = verdict.checkpoint().unwrap();
    assert_eq!((checkpoint.reset_count, checkpoint.restart_count, checkpoint.clock), (5, 2, 1000));
    assert_eq!(checkpoint.pcrs.len(), 3);
    assert_eq!(checkpoint.policy, Some(World::good().policy.unwrap().id()));
}

#[test]
fn a_pcr_that_is_not_listed_is_a_finding_with_both_values() {
    let verdict = World::good().set(7, reference(1)).judge();
    assert_eq!(verdict.outcome(), Outcome::Failed);
    let Verdict::Bad(bad) = &verdict else { panic!() };
    assert_eq!(bad.code(), "pcr_mismatch");
    let [finding] = &bad.explanation().findings[..] else { panic!() };
    assert_eq!((finding.what.as_str(), finding.found.clone()), ("sha256:7", reference(1).to_string()));
    assert_eq!(finding.expected, format!("{} or {}", reference(70), reference(7)));
    assert_eq!(verdict.summary(), "PCR sha256:7 holds a value that the policy does not list");
    assert!(verdict.checkpoint().is_none());
}

#[test]
fn everything_that_is_wrong_is_told_at_once() {
    let mut world = World::good().set(7, reference(1)).set(13, Digest::zero(SHA256));
    world.hardware = Hardware::Unproven;
    let codes: Vec<_> = world.codes().into_iter().map(|(code, _)| code).collect();
    assert_eq!(codes, ["pcr_mismatch", "phase_pcr_mismatch", "hardware_unproven"]);
    assert!(world.judge().summary().ends_with("(and 2 more)"));
}

#[test]
fn a_named_pcr_that_was_not_quoted_is_a_finding() {
    let mut world = World::good();
    let mut values = PcrValues::new();
    values.set(SHA256, 0, reference(0)).unwrap();
    world.values = values;
    assert_eq!(world.codes(), [("pcr_not_quoted", "sha256:7".into()), ("phase_pcr_mismatch", "sha256:13".into())]);
}

#[test]
fn without_a_policy_nothing_is_good_and_the_evidence_is_kept() {
    let mut world = World::good();
    world.policy = None;
    let verdict = world.judge();
    assert_eq!(verdict.outcome(), Outcome::Unjudged);
    assert_eq!(verdict.checkpoint().unwrap().pcrs.len(), 3);
    assert_eq!(verdict.checkpoint().unwrap().policy, None);
}

#[test]
fn exceptions_are_needed_by_name_and_repeated_by_the_verdict() {
    let mut world = World::good();
    world.hardware = Hardware::Unproven;
    assert_eq!(world.codes(), one("hardware_unproven", "TPM"));
    world.policy = Some(policy("\"hardware-unproven\"", "phase_pcr = 13"));
    let verdict = world.judge();
    assert_eq!(verdict.explanation().accepted, ["hardware-unproven"]);
    assert!(verdict.summary().ends_with("; accepted: hardware-unproven"), "{}", verdict.summary());
    world.hardware = Hardware::AllowListed;
    assert_eq!(world.judge().outcome(), Outcome::Good);
}

#[test]
fn a_bank_that_firmware_left_alone_gives_no_verdict() {
    let zero = Digest::zero(SHA256);
    let text = |accept: &str| {
        format!(
            "version = 1\nname = \"edge\"\naccept = [{accept}]\n[pcrs.sha256]\n7 = [\"{zero}\"]\n[release]\nphase_pcr = 13"
        )
    };
    let mut world = World::good().set(0, zero).set(7, zero);
    world.policy = Some(Policy::parse(text("").as_bytes()).unwrap());
    assert_eq!(world.codes(), one("no_firmware_measurements", "sha256"));
    world.policy = Some(Policy::parse(text("\"no-firmware-measurements\"").as_bytes()).unwrap());
    assert_eq!(world.judge().outcome(), Outcome::Good);
    // One measured firmware PCR is enough.
    world.policy = Some(Policy::parse(text("").as_bytes()).unwrap());
    assert_eq!(world.set(0, reference(0)).judge().outcome(), Outcome::Good);
}

#[test]
fn firmware_in_one_bank_does_not_speak_for_another() {
    let sha384 = HashAlg::Sha384;
    let good = sha384.digest(&[b"app"]);
    let text = format!(
        "version = 1\nname = \"x\"\n[pcrs.sha256]\n0 = [\"{}\"]\n[pcrs.sha384]\n8 = [\"{good}\"]\n[release]\nphase_pcr = 13",
        reference(0)
    );
    let mut world = World::good();
    world.policy = Some(Policy::parse(text.as_bytes()).unwrap());
    world.values.set(sha384, 0, Digest::zero(sha384)).unwrap();
    world.values.set(sha384, 8, good).unwrap();
    world.values.set(sha384, 13, events().values(sha384).0).unwrap();
    assert_eq!(world.codes(), one("no_firmware_measurements", "sha384"));
    world.values.set(sha384, 0, good).unwrap();
    assert_eq!(world.judge().outcome(), Outcome::Good);
    // And the phase has to be the same in both.
    world.values.set(sha384, 13, events().values(sha384).1).unwrap();
    assert_eq!(world.codes(), one("phase_pcr_mismatch", "sha384:13"));
}

#[test]
fn the_phase_pcr_holds_the_operators_pins_or_nothing_is_good() {
    let zero = Digest::zero(SHA256);
    for value in [zero, reference(13), extend(SHA256, &zero, &event_digest(SHA256, DELIVERED_EVENT)).unwrap()] {
        assert_eq!(World::good().set(13, value).codes(), one("phase_pcr_mismatch", "sha256:13"));
    }
    for other in [PhaseEvents::new(&[tenant_key(2)], false), PhaseEvents::new(&[tenant_key(1)], true)] {
        let mut world = World::good();
        world.phase = Some(other.unwrap());
        assert_eq!(world.codes(), one("phase_pcr_mismatch", "sha256:13"));
    }
    let mut world = World::good();
    world.phase = None;
    assert_eq!(world.codes(), one("no_pins", "pins"));
}

#[test]
fn phase_values_are_what_tpm2_pcr_event_makes_of_the_pins() {
    let key = tenant_key(1);
    let event = [&b"trefoil-v1-pins"[..], &[1], &key, &[1]].concat();
    let pins = SHA256.digest(&[&[0; 32], &SHA256.digest(&[&event])]);
    let delivered = SHA256.digest(&[&pins, &SHA256.digest(&[b"trefoil-v1-delivered"])]);
    assert_eq!(PhaseEvents::new(&[key], true).unwrap().values(SHA256), (pins, delivered));
    let stored = Pins { tenant_keys: vec![hex::encode(key)], autorun: true };
    assert_eq!(PhaseEvents::from_pins(&stored).unwrap(), PhaseEvents::new(&[key], true).unwrap());
    assert_eq!(
        PhaseEvents::new(&[key, tenant_key(2)], false).unwrap(),
        PhaseEvents::new(&[tenant_key(2), key], false).unwrap()
    );
    assert_eq!(PhaseEvents::new(&[key, [7; 65]], false).unwrap_err(), PinsError::BadKey(2));
    assert!(matches!(PhaseEvents::new(&[], false), Err(PinsError::WrongCount(_))));
    let five: Vec<_> = (1..6).map(tenant_key).collect();
    assert!(matches!(PhaseEvents::new(&five, false), Err(PinsError::WrongCount(_))));
}

#[test]
fn a_share_may_leave_on_a_fresh_bootstrap_verdict_with_pins_only() {
    let verdict = World::good().good_verdict();
    let right = release_right(&verdict, &conditions(&verdict)).unwrap();
    assert_eq!((right.quote_digest(), right.epoch()), (verdict.quote_digest(), (5, 2)));
}

#[test]
fn a_delivered_node_is_good_and_gets_no_share() {
    let verdict = World::good().set(13, events().values(SHA256).1).good_verdict();
    assert_eq!(verdict.phase(), PhaseState::Delivered);
    let refused = release_right(&verdict, &conditions(&verdict)).unwrap_err();
    assert_eq!((refused, refused.code()), (ReleaseRefused::PhaseDelivered, "phase_delivered"));
}

#[test]
fn each_release_condition_is_needed() {
    let verdict = World::good().good_verdict();
    let fits = conditions(&verdict);
    let refused = |now: ReleaseConditions| release_right(&verdict, &now).unwrap_err();
    assert_eq!(refused(ReleaseConditions { stopped: true, ..fits }), ReleaseRefused::NodeStopped);
    assert_eq!(refused(ReleaseConditions { stands: false, ..fits }), ReleaseRefused::VerdictSuperseded);
    assert_eq!(refused(ReleaseConditions { policy: None, ..fits }), ReleaseRefused::PolicyChanged);
    assert_eq!(refused(ReleaseConditions { policy: Some([0; 32]), ..fits }), ReleaseRefused::PolicyChanged);
    let old = ReleaseConditions { now_ms: 31_001, ..fits };
    assert_eq!(refused(old), ReleaseRefused::VerdictTooOld { age_ms: 30_001 });
    assert!(release_right(&verdict, &ReleaseConditions { now_ms: 31_000, ..fits }).is_ok());
    // A clock that was set back makes no verdict young.
    assert_eq!(refused(ReleaseConditions { now_ms: 999, ..fits }), ReleaseRefused::VerdictTooOld { age_ms: -1 });

    let mut world = World::good();
    world.purpose = Purpose::Attest;
    let attest = world.good_verdict();
    assert_eq!(release_right(&attest, &conditions(&attest)).unwrap_err(), ReleaseRefused::NotBootstrap);
}

#[test]
fn without_a_release_rule_no_share_leaves_and_uncapped_has_to_be_said() {
    let mut world = World::good();
    world.policy = Some(policy("", ""));
    let verdict = world.good_verdict();
    assert_eq!(release_right(&verdict, &conditions(&verdict)).unwrap_err(), ReleaseRefused::NoReleaseRule);
    assert!(verdict.explanation().not_checked.iter().any(|line| line.starts_with("phase:")));
    world.policy = Some(policy("", "uncapped = true"));
    let verdict = world.set(13, reference(13)).good_verdict();
    assert!(release_right(&verdict, &conditions(&verdict)).is_ok());
}

#[test]
fn counters_that_went_back_are_an_outcome_of_their_own_with_or_without_a_policy() {
    let mut world = World::good();
    world.previous = Some(Checkpoint { reset_count: 6, ..Checkpoint::default() });
    let verdict = world.judge();
    assert_eq!((verdict.outcome(), codes(&verdict)), (Outcome::RolledBack, one("rolled_back", "resetCount")));
    world.policy = None;
    assert_eq!(world.judge().outcome(), Outcome::RolledBack);
    assert!(world.judge().checkpoint().is_none());
    world.previous = Some(Checkpoint { reset_count: 5, ..Checkpoint::default() });
    assert_eq!((world.judge().outcome(), world.codes()[0].0), (Outcome::Failed, "firmware_changed"));
}

/// A SHA-256 log that extends PCR 0, 7 and 11 once each.
fn boot_log() -> (Vec<u8>, World) {
    let mut log = [[0; 4], EV_NO_ACTION.to_le_bytes()].concat();
    log.extend_from_slice(&[0; 20]);
    let spec_id = [&b"Spec ID Event03\0\0\0\0\0\0\x02\0\x02"[..], &[1, 0, 0, 0, 0xb, 0, 32, 0, 0]].concat();
    log.extend_from_slice(&u32::try_from(spec_id.len()).unwrap().to_le_bytes());
    log.extend_from_slice(&spec_id);
    let mut world = World::good();
    let mut listed = String::new();
    for index in [0u8, 7, 11] {
        log.extend_from_slice(&[index, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0xb, 0]);
        log.extend_from_slice(&[index + 1; 32]);
        log.extend_from_slice(&[0; 4]);
        let value = SHA256.digest(&[&[0; 32], &[index + 1; 32]]);
        world = world.set(index, value);
        listed.push_str(&format!("{index} = [\"{value}\"]\n"));
    }
    let text = format!("version = 1\nname = \"log\"\n[pcrs.sha256]\n{listed}[release]\nphase_pcr = 13");
    world.policy = Some(Policy::parse(text.as_bytes()).unwrap());
    (log, world)
}

#[test]
fn a_boot_log_has_to_replay_to_the_quoted_pcrs() {
    let (log, world) = boot_log();
    let replayed = ReadBootLog::read(&log, None, None).unwrap();
    let verdict = world.judge_with(BootLogEvidence::Replayed(&replayed), ImaEvidence::None);
    assert_eq!(verdict.outcome(), Outcome::Good);
    assert_eq!(verdict.checkpoint().unwrap().boot_log, Some(replayed.replayed.digest()));
    assert!(verdict.explanation().not_checked.iter().any(|line| line.contains("only replayed")));

    let mut other = log.clone();
    let at = log.len() - 2 * 50 + 14;
    other[at] ^= 1;
    let replayed = ReadBootLog::read(&other, None, None).unwrap();
    let verdict = world.judge_with(BootLogEvidence::Replayed(&replayed), ImaEvidence::None);
    assert_eq!(codes(&verdict), one("boot_log_mismatch", "sha256:7"));
    let unreadable = BootLogEvidence::Unreadable(BootLogError::Empty);
    assert_eq!(codes(&world.judge_with(unreadable, ImaEvidence::None)), one("boot_log_unreadable", "boot log"));
}

#[test]
fn a_pcr_that_systemd_extends_on_is_said_not_to_be_proven_by_the_log() {
    let (log, mut world) = boot_log();
    world.policy = None;
    let world = world.set(11, reference(11));
    let replayed = ReadBootLog::read(&log, None, None).unwrap();
    let verdict = world.judge_with(BootLogEvidence::Replayed(&replayed), ImaEvidence::None);
    assert_eq!((verdict.outcome(), verdict.explanation().findings.len()), (Outcome::Unjudged, 0));
    assert!(verdict.explanation().not_checked[0].contains("sha256:11"), "{:?}", verdict.explanation().not_checked);
}

#[test]
fn a_boot_log_judged_before_stands_while_its_pcrs_do() {
    let (log, mut world) = boot_log();
    let replayed = ReadBootLog::read(&log, None, None).unwrap();
    let judged = world.judge_with(BootLogEvidence::Replayed(&replayed), ImaEvidence::None);
    world.previous = judged.checkpoint().cloned();
    let before = |world: &World| world.judge_with(BootLogEvidence::JudgedBefore, ImaEvidence::None);
    let verdict = before(&world);
    assert_eq!(verdict.outcome(), Outcome::Good);
    assert_eq!(verdict.checkpoint().unwrap().boot_log, Some(replayed.replayed.digest()));
    assert!(boot_log_is_judged(world.previous.as_ref(), Epoch::Same, world.policy.as_ref(), &world.pcrs()));

    let extended = World { policy: world.policy.clone(), previous: world.previous.clone(), ..boot_log().1 };
    let verdict = before(&extended.set(7, reference(9)));
    assert!(codes(&verdict).contains(&("boot_log_mismatch", "sha256:7".to_owned())));

    assert!(!boot_log_is_judged(world.previous.as_ref(), Epoch::NewBoot, world.policy.as_ref(), &world.pcrs()));
    assert!(!boot_log_is_judged(None, Epoch::First, world.policy.as_ref(), &world.pcrs()));
    assert!(!boot_log_is_judged(
        world.previous.as_ref(),
        Epoch::Same,
        world.policy.as_ref(),
        &boot_log().1.set(4, reference(4)).pcrs()
    ));
    // Another policy may have rules for its events: it has to be read again.
    assert!(!boot_log_is_judged(world.previous.as_ref(), Epoch::Same, World::good().policy.as_ref(), &world.pcrs()));
    let other = World { policy: World::good().policy, previous: world.previous.clone(), ..boot_log().1 };
    assert!(codes(&before(&other)).contains(&("boot_log_missing", "boot log".to_owned())));
    world.reset_count = 6;
    assert_eq!(codes(&before(&world)), one("boot_log_missing", "boot log"));
}

#[test]
fn a_log_without_the_quoted_bank_is_said_not_to_be_replayed() {
    let (_, world) = boot_log();
    let mut sha1 = [0; 32].to_vec();
    sha1[0] = 7;
    sha1[4] = 1;
    let replayed = ReadBootLog::read(&sha1, None, None).unwrap();
    let verdict = world.judge_with(BootLogEvidence::Replayed(&replayed), ImaEvidence::None);
    assert_eq!(verdict.outcome(), Outcome::Good);
    assert!(verdict.explanation().not_checked[0].contains("no sha256 digests"));
    assert_eq!(verdict.checkpoint().unwrap().boot_log, None);
}

fn ima(target: Digest, list: &[u8]) -> Result<ReplayedIma, ImaError> {
    let mut replay = ImaReplay::new(&ImaStart::beginning(), [(SHA256, target)]);
    replay.push(list)?;
    replay.finish()
}

/// A list of one entry, and PCR 10 after it.
fn ima_list() -> (Vec<u8>, Digest) {
    let data = b"data";
    let mut list = [10, 0, 0, 0].to_vec();
    list.extend_from_slice(&HashAlg::Sha1.digest(&[data]));
    list.extend_from_slice(&[1, 0, 0, 0, b'x', 4, 0, 0, 0]);
    list.extend_from_slice(data);
    (list, SHA256.digest(&[&[0; 32], &SHA256.digest(&[data])]))
}

#[test]
fn an_ima_list_has_to_be_there_and_to_replay() {
    let (list, pcr) = ima_list();
    let world = World::good().set(10, pcr);
    let replayed = ima(pcr, &list).unwrap();
    let verdict = world.judge_with(BootLogEvidence::None, ImaEvidence::Replayed(&replayed, None));
    assert_eq!(verdict.outcome(), Outcome::Good);
    let checkpoint = verdict.checkpoint().unwrap();
    assert_eq!((checkpoint.ima_entries, &checkpoint.ima_pcrs), (1, &vec![(0xb, pcr.to_vec())]));

    let judge = |world: &World, evidence| codes(&world.judge_with(BootLogEvidence::None, evidence));
    assert_eq!(judge(&world, ImaEvidence::None), one("ima_list_missing", "sha256:10"));
    let error = ima(reference(10), &list).unwrap_err();
    assert_eq!(judge(&world, ImaEvidence::Unreadable(error)), one("ima_mismatch", "IMA list"));
    let other = World::good().set(10, reference(10));
    assert_eq!(judge(&other, ImaEvidence::Replayed(&replayed, None)), one("ima_mismatch", "sha256:10"));
    assert_eq!(judge(&World::good(), ImaEvidence::Replayed(&replayed, None)), one("pcr_not_quoted", "10"));
    // Without a list, a PCR 10 of zeros is as it should be.
    assert_eq!(World::good().set(10, Digest::zero(SHA256)).judge().outcome(), Outcome::Good);
}

#[test]
fn a_list_that_was_there_in_this_boot_does_not_go_away() {
    let mut world = World::good();
    let mut previous = world.judge().checkpoint().unwrap().clone();
    previous.ima_entries = 3;
    world.previous = Some(previous);
    assert_eq!(world.codes(), one("ima_list_missing", "10"));
    world.reset_count = 6;
    assert_eq!(world.judge().outcome(), Outcome::Good);
}

#[test]
fn rules_on_events_are_part_of_the_verdict_and_need_a_log_that_replays() {
    let (log, world) = boot_log();
    let with = |rules: &str| {
        let text = format!("version = 1\nname = \"rules\"\n[boot]\n{rules}\n[release]\nphase_pcr = 13");
        World { policy: Some(Policy::parse(text.as_bytes()).unwrap()), ..boot_log().1 }
    };
    let event = hex::encode([8; 32]);
    let read = ReadBootLog::read(&log, None, None).unwrap();
    let judge = |world: &World, evidence| world.judge_with(evidence, ImaEvidence::None);
    assert_eq!(judge(&world, BootLogEvidence::Replayed(&read)).outcome(), Outcome::Good);

    // Without a rule for it, the event of PCR 7 is named, with its number and type.
    let unruled = with("pcrs = [7]");
    let verdict = judge(&unruled, BootLogEvidence::Replayed(&read));
    let findings = &verdict.explanation().findings;
    let unknown = findings.iter().find(|finding| finding.code == "unknown_event").unwrap();
    assert_eq!((unknown.check, unknown.place.pcr), (Check::BootPolicy, Some(7)));
    assert!(unknown.place.event.is_some() && unknown.found.contains(&event), "{unknown:?}");
    assert!(verdict.checkpoint().is_none());

    // A policy with rules needs a log, one that replays, and of the quoted bank.
    assert_eq!(codes(&judge(&unruled, BootLogEvidence::None)), one("boot_log_missing", "boot log"));
    let mut other = log.clone();
    let at = log.len() - 2 * 50 + 14;
    other[at] ^= 1;
    let other = ReadBootLog::read(&other, None, None).unwrap();
    assert_eq!(codes(&judge(&unruled, BootLogEvidence::Replayed(&other))), one("boot_log_mismatch", "sha256:7"));
}

#[test]
fn what_userspace_measured_behind_the_quote_meets_no_rule_and_breaks_none() {
    let (log, _) = boot_log();
    let measured = SHA256.digest(&[b"machine-id"]);
    let text = format!(
        "version = 1\nname = \"rules\"\n[boot]\npcrs = [15]\n\
         [[boot.event]]\nname = \"machine\"\npcr = 15\nrequired = true\ndigests = [\"{measured}\"]\n\
         [release]\nphase_pcr = 13"
    );
    let record = |digest: &Digest| {
        format!("\u{1e}{{\"pcr\":15,\"digests\":[{{\"hashAlg\":\"sha256\",\"digest\":\"{digest}\"}}]}}\n")
    };
    let zero = Digest::zero(SHA256);
    let judge = |value: Digest, records: &[&Digest]| {
        let policy = Some(Policy::parse(text.as_bytes()).unwrap());
        let world = World { policy, ..boot_log().1 }.set(15, value);
        let userspace: String = records.iter().map(|digest| record(digest)).collect();
        let read = ReadBootLog::read(&log, None, Some(userspace.as_bytes())).unwrap();
        world.judge_with(BootLogEvidence::Replayed(&read), ImaEvidence::None)
    };
    // Said to be measured, and not in the quoted PCR.
    assert_eq!(codes(&judge(zero, &[&measured])), one("event_missing", "PCR 15"));
    let value = extend(SHA256, &zero, &measured).unwrap();
    assert_eq!(judge(value, &[&measured]).outcome(), Outcome::Good);
    let later = SHA256.digest(&[b"later"]);
    assert_eq!(judge(value, &[&measured, &later]).outcome(), Outcome::Good);
    assert_eq!(codes(&judge(value, &[&later, &measured])), one("boot_log_mismatch", "sha256:15"));
}

#[test]
fn a_measurement_of_userspace_without_digest_accounts_for_nothing() {
    let (log, world) = boot_log();
    let world = world.set(14, reference(14));
    for userspace in [None, Some(&b"\x1e{\"pcr\":14,\"digests\":[]}\n"[..])] {
        let read = ReadBootLog::read(&log, None, userspace).unwrap();
        let verdict = world.judge_with(BootLogEvidence::Replayed(&read), ImaEvidence::None);
        assert_eq!(codes(&verdict), one("boot_log_mismatch", "sha256:14"));
    }
}

#[test]
fn a_pcr_that_boot_rules_speak_of_has_to_be_quoted() {
    let (log, _) = boot_log();
    let policy = Policy::parse(b"version = 1\nname = \"x\"\n[boot]\npcrs = [14]\n[release]\nphase_pcr = 13").unwrap();
    let world = World { policy: Some(policy), ..boot_log().1 };
    let read = ReadBootLog::read(&log, None, None).unwrap();
    let verdict = world.judge_with(BootLogEvidence::Replayed(&read), ImaEvidence::None);
    assert_eq!(codes(&verdict), one("pcr_not_quoted", "sha256:14"));
}

#[test]
fn rules_on_files_need_a_judgement_of_exactly_the_proven_entries_by_this_policy() {
    use super::super::ima_rules::ImaJudge;

    let (list, pcr) = ima_list();
    let text = "version = 1\nname = \"files\"\n[ima]\n[release]\nphase_pcr = 13";
    let policy = Policy::parse(text.as_bytes()).unwrap();
    let mut world = World::good().set(10, pcr);
    world.policy = Some(policy.clone());
    let replayed = ima(pcr, &list).unwrap();
    let judge = |judged: Option<&ImaJudgement>| {
        codes(&world.judge_with(BootLogEvidence::None, ImaEvidence::Replayed(&replayed, judged)))
    };
    assert_eq!(judge(None), one("ima_not_judged", "IMA list"));
    let of_nothing = ImaJudge::new(&policy, 0, &[]).unwrap().finish();
    assert_eq!(judge(Some(&of_nothing)), one("ima_not_judged", "IMA list"));
    let other = Policy::parse(text.replace("files", "other").as_bytes()).unwrap();
    let judged_by = |policy: &Policy| {
        let mut judge = ImaJudge::new(policy, 0, &[]).unwrap();
        let mut replay = ImaReplay::new(&ImaStart::beginning(), [(SHA256, pcr)]);
        replay.push_with(&list, |entry| judge.entry(entry)).unwrap();
        judge.finish()
    };
    assert_eq!(judge(Some(&judged_by(&other))), one("ima_not_judged", "IMA list"));
    // The list's only entry is of an unknown template: a finding at that entry.
    let verdict = world.judge_with(BootLogEvidence::None, ImaEvidence::Replayed(&replayed, Some(&judged_by(&policy))));
    let [finding] = &verdict.explanation().findings[..] else { panic!("{verdict:?}") };
    assert_eq!((finding.check, finding.place.entry), (Check::ImaPolicy, Some(0)));
    // No list at all is no list of good files.
    let mut world = World::good();
    world.policy = Some(policy);
    assert_eq!(world.codes(), one("ima_list_missing", "10"));
}

#[test]
fn the_list_has_to_be_of_the_boot_that_the_log_is_of() {
    use super::super::ima_rules::ImaJudge;

    let (log, world) = boot_log();
    let read = ReadBootLog::read(&log, None, None).unwrap();
    let of_log = boot_aggregates(SHA256, |index| read.replayed.value(SHA256, index).copied());
    let listed = "version = 1\nname = \"files\"\n[ima]\n[release]\nphase_pcr = 13";
    let policy = Policy::parse(listed.as_bytes()).unwrap();
    let judge = |digest: &Digest, boot_log: BootLogEvidence<'_>| {
        let sized = |bytes: &[u8]| [&u32::try_from(bytes.len()).unwrap().to_le_bytes()[..], bytes].concat();
        let data = [sized(&[&b"sha256:\0"[..], digest].concat()), sized(b"boot_aggregate\0")].concat();
        let mut list = [10, 0, 0, 0].to_vec();
        list.extend_from_slice(&HashAlg::Sha1.digest(&[&data]));
        list.extend([sized(b"ima-ng"), sized(&data)].concat());
        let pcr = SHA256.digest(&[&[0; 32], &SHA256.digest(&[&data])]);
        let mut judge = ImaJudge::new(&policy, 0, &[]).unwrap();
        let mut replay = ImaReplay::new(&ImaStart::beginning(), [(SHA256, pcr)]);
        replay.push_with(&list, |entry| judge.entry(entry)).unwrap();
        let (replayed, judged) = (replay.finish().unwrap(), judge.finish());
        let mut world =
            World { policy: Some(policy.clone()), values: world.values.clone(), ..World::good() }.set(10, pcr);
        world.phase = Some(events());
        world.judge_with(boot_log, ImaEvidence::Replayed(&replayed, Some(&judged)))
    };
    for digest in &of_log {
        let verdict = judge(digest, BootLogEvidence::Replayed(&read));
        assert_eq!(verdict.outcome(), Outcome::Good, "{verdict:?}");
    }
    let verdict = judge(&reference(3), BootLogEvidence::Replayed(&read));
    let [finding] = &verdict.explanation().findings[..] else { panic!("{verdict:?}") };
    assert_eq!((finding.code, finding.place.entry), ("ima_boot_aggregate_mismatch", Some(0)));
    assert!(finding.expected.contains(&of_log[0].to_string()) && finding.found == reference(3).to_string());
    // Without a log nothing can be compared, and the verdict says so.
    let verdict = judge(&reference(3), BootLogEvidence::None);
    assert!(verdict.explanation().not_checked.iter().any(|line| line.contains("boot_aggregate")), "{verdict:?}");
}
