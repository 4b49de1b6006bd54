//! How fast appraisal is, one thread, against the cryptography that it cannot do without.
//!
//! `cargo xtask bench` runs this and knows the limits; by itself (`cargo bench -p control-plane`) it prints one JSON
//! object. What is compared is measured in alternating rounds of one run, so that a slow machine slows both; each figure
//! is a median of this thread's own processor time, of which other processes take none.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    env,
    fmt::Write as _,
    fs,
    hint::black_box,
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use control_plane::appraisal::{
    AkPublic, Hardware, ImaReplay, Input, Policy, QuotedPcrs, Verdict, VerifiedQuote, appraise,
    boot_log::{BootLog, EV_NO_ACTION},
    ima_log::ImaStart,
    ima_rules::ImaJudge,
    verdict::{BootLogEvidence, ImaEvidence, ReadBootLog},
};
use protocol::{
    bytes::Bytes,
    message::attest::{PcrValue, PcrValueList, Purpose},
    tpm::{
        alg::{Digest, HashAlg},
        attest::{ClockInfo, TpmsAttest},
        pcr::{PcrSelectionList, PcrValues, digest_over},
        public::KeyPublic,
        signature::TpmtSignature,
        template::{AkKind, ak_qualified_name},
    },
};
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey},
};
use sha2::{Digest as _, Sha256};

const SHA256: HashAlg = HashAlg::Sha256;
/// Entries of the IMA list, and paths of the policy that judges it.
const IMA_ENTRIES: usize = 100_000;
/// Digests of the policy whose loading is measured.
const POLICY_DIGESTS: usize = 150_000;
/// Quotes, each another, and the keys that made them.
const QUOTES: usize = 384;
const KEYS: usize = 16;
/// PCRs that the policy names; PCR 10 is quoted with them.
const POLICY_PCRS: [u8; 7] = [0, 1, 2, 3, 4, 5, 7];
const IMA_PCR: u8 = 10;
/// The length of a large boot log, where there is no real one.
const BOOT_LOG_LEN: usize = 73 * 1024;

/// Counts what is allocated and not freed.
struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call is passed on to the system's allocator as it came; counting touches no memory but its own.
#[expect(unsafe_code, reason = "an allocator that counts is the only way to see what a policy costs")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        ALLOCATED.fetch_add(new_size, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}

fn main() -> Result<()> {
    let quotes = quotes()?;
    let ima = ima()?;
    let (policy_load_ms, policy_bytes) = policy()?;
    let figures = serde_json::json!({
        "appraise_quote_per_s": quotes.appraised_per_s.round(),
        "p256_verify_per_s": quotes.raw_per_s.round(),
        "appraise_over_raw": rounded(quotes.ratio),
        "ima_entries_per_s": ima.entries_per_s.round(),
        "ima_over_hash": rounded(ima.ratio),
        "policy_load_ms": rounded(policy_load_ms),
        "policy_bytes": policy_bytes,
        "boot_log_ms": rounded(boot_log()?),
        "verifier_state_bytes": quotes.state_bytes,
        "sha_ni": has_sha_ni(),
        "lookup_ns_1000": rounded(lookup_ns(1000)?),
        "lookup_ns_150000": rounded(lookup_ns(POLICY_DIGESTS)?),
    });
    println!("{figures}");
    Ok(())
}

fn rounded(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}

fn has_sha_ni() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("sha");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

/// Processor time of this thread so far.
fn now() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap_or_default(), time.tv_nsec.try_into().unwrap_or_default())
}

/// Times two things in turn, `rounds` times, after one round that does not count; the medians, and that of the ratios
/// second to first.
fn compare(rounds: usize, mut first: impl FnMut(), mut second: impl FnMut()) -> (Duration, Duration, f64) {
    let time = |work: &mut dyn FnMut()| {
        let begun = now();
        work();
        now() - begun
    };
    let (mut firsts, mut seconds, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=rounds {
        // The order changes too: what comes first finds a colder cache.
        let (a, b) = if round % 2 == 0 {
            let a = time(&mut first);
            (a, time(&mut second))
        } else {
            let b = time(&mut second);
            (time(&mut first), b)
        };
        if round > 0 {
            firsts.push(a);
            seconds.push(b);
            ratios.push(b.as_secs_f64() / a.as_secs_f64());
        }
    }
    (median(&mut firsts), median(&mut seconds), {
        ratios.sort_by(f64::total_cmp);
        ratios.get(ratios.len() / 2).copied().unwrap_or_default()
    })
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

struct Quotes {
    appraised_per_s: f64,
    raw_per_s: f64,
    ratio: f64,
    state_bytes: usize,
}

/// A quote as it comes, and what is known of its maker.
struct Made {
    ak: usize,
    attested: Vec<u8>,
    signature: Vec<u8>,
    fixed: Vec<u8>,
    qualifying_data: [u8; 32],
}

/// Quotes appraised by a policy of PCRs, against nothing but their signatures.
fn quotes() -> Result<Quotes> {
    let rng = SystemRandom::new();
    let mut mask = 1u32 << IMA_PCR;
    let mut values = PcrValues::new();
    let mut text = String::from("version = 1\nname = \"bench\"\n[pcrs.sha256]\n");
    for index in POLICY_PCRS {
        mask |= 1 << index;
        let digest = SHA256.digest(&[b"pcr", &[index]]);
        values.set(SHA256, index, digest)?;
        writeln!(text, "{index} = [\"{}\", \"{digest}\"]", SHA256.digest(&[b"another", &[index]]))?;
    }
    values.set(SHA256, IMA_PCR, Digest::zero(SHA256))?;
    let policy = Policy::parse(text.as_bytes())?;
    let selection = PcrSelectionList::single(SHA256, mask).context("a selection")?;
    let wire: PcrValueList = values
        .iter()
        .map(|(bank, index, digest)| Ok(PcrValue { bank: bank.id(), index, digest: Bytes::new(digest)? }))
        .collect::<Result<_, protocol::codec::CodecError>>()?;
    let mut keys = Vec::new();
    for _ in 0..KEYS {
        let pkcs8 =
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &rng).map_err(|_| anyhow!("a key"))?;
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &rng)
            .map_err(|_| anyhow!("a key"))?;
        let mut public = AkKind::P256.template();
        let KeyPublic::Ecc { x, y, .. } = &mut public.key else { return Err(anyhow!("not an ECC template")) };
        let point = pair.public_key().as_ref().get(1..).and_then(|point| point.split_at_checked(32));
        let (px, py) = point.context("a point")?;
        (*x, *y) = (px.try_into()?, py.try_into()?);
        keys.push((AkPublic::from_tpmt(&public.encode())?, pair, ak_qualified_name(&public.name()).context("a name")?));
    }
    let mut made = Vec::new();
    for number in 0..QUOTES {
        let (_, pair, qualified_signer) = keys.get(number % KEYS).context("a key")?;
        let qualifying_data: [u8; 32] = SHA256.digest(&[&number.to_le_bytes()]).as_bytes().try_into()?;
        let attest = TpmsAttest {
            qualified_signer: *qualified_signer,
            extra_data: qualifying_data.as_slice().try_into()?,
            clock_info: ClockInfo { clock: 1000, reset_count: 5, restart_count: 2, safe: true },
            firmware_version: 0x2019_1023_0016_3636,
            pcr_select: selection.clone(),
            pcr_digest: digest_over(&selection, &values, SHA256)?,
        };
        let attested = attest.encode();
        let fixed = pair.sign(&rng, &attested).map_err(|_| anyhow!("a signature"))?.as_ref().to_vec();
        let signature = TpmtSignature::from_ecdsa_fixed(SHA256, &fixed)?.encode();
        made.push(Made { ak: number % KEYS, attested, signature, fixed, qualifying_data });
    }
    let judge = |made: &Made| -> Result<Verdict> {
        let (ak, ..) = keys.get(made.ak).context("a key")?;
        let quote = VerifiedQuote::verify(ak, &made.attested, &made.signature, &made.qualifying_data, &selection)?;
        let pcrs = QuotedPcrs::complete(&quote, None, &wire, false)?;
        Ok(appraise(&Input {
            purpose: Purpose::Attest,
            policy: Some(&policy),
            pcrs: &pcrs,
            previous: None,
            hardware: Hardware::Certified,
            boot_log: BootLogEvidence::None,
            ima: ImaEvidence::None,
            phase: None,
        }))
    };
    let first = judge(made.first().context("a quote")?)?;
    let Verdict::Good(good) = &first else { return Err(anyhow!("the quote is not good: {:?}", first.explanation())) };
    // With what a boot log and an IMA list leave behind.
    let mut state = good.checkpoint().clone();
    state.boot_log = Some([0xff; 32]);
    state.ima_entries = u64::MAX;
    state.ima_pcrs = vec![(SHA256.id(), vec![0xff; 32])];
    let state_bytes = serde_json::to_vec(&state)?.len();
    let mut good_count = 0usize;
    let rounds = 15;
    let (appraised, raw, ratio) = compare(
        rounds,
        || good_count += made.iter().filter(|made| matches!(judge(made), Ok(Verdict::Good(_)))).count(),
        || {
            for made in &made {
                let Some((_, pair, _)) = keys.get(made.ak) else { continue };
                let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, pair.public_key().as_ref());
                let _ = black_box(key.verify(black_box(&made.attested), &made.fixed));
            }
        },
    );
    ensure!(good_count == made.len() * (rounds + 1), "{good_count} quotes of {} were good", made.len() * (rounds + 1));
    let per_s = |time: Duration| made.len() as f64 / time.as_secs_f64();
    Ok(Quotes { appraised_per_s: per_s(appraised), raw_per_s: per_s(raw), ratio, state_bytes })
}

struct Ima {
    entries_per_s: f64,
    ratio: f64,
}

fn sized(bytes: &[u8]) -> Vec<u8> {
    let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    [&len.to_le_bytes()[..], bytes].concat()
}

fn path(number: usize) -> String {
    format!("/usr/lib/x86_64-linux-gnu/package-{}/lib{number}.so.{}", number % 997, number % 10)
}

fn file_digest(number: usize) -> Digest {
    SHA256.digest(&[b"file", &number.to_le_bytes()])
}

/// Numbers from none on in an order that no cache foresees.
fn shuffled(count: usize) -> Vec<usize> {
    let mut numbers: Vec<usize> = (0..count).collect();
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    for at in (1..count).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        numbers.swap(at, (state % (at as u64 + 1)) as usize);
    }
    numbers
}

/// A policy of this many files, in JSON, in the order in which tools write them.
fn policy_json(count: usize) -> Result<String> {
    let mut lines: Vec<String> =
        (0..count).map(|number| format!("\"{}\":[\"sha256:{}\"]", path(number), file_digest(number))).collect();
    lines.sort();
    Ok(format!(
        "{{\"version\":1,\"name\":\"bench\",\"ima\":{{\"boot_aggregate\":\"any\",\"files\":{{{}}}}}}}",
        lines.join(",\n")
    ))
}

/// A list replayed and judged by a policy of the same size, against nothing but its hashes.
fn ima() -> Result<Ima> {
    let policy = Policy::parse(policy_json(IMA_ENTRIES)?.as_bytes())?;
    let mut list = Vec::new();
    let mut datas = Vec::new();
    for number in shuffled(IMA_ENTRIES) {
        let digest = [b"sha256:\0", &file_digest(number)[..]].concat();
        let data = [sized(&digest), sized(&[path(number).as_bytes(), &[0]].concat())].concat();
        let hash = HashAlg::Sha1.digest(&[&data]);
        list.extend_from_slice(
            &[&u32::from(IMA_PCR).to_le_bytes()[..], &hash, &sized(b"ima-ng"), &sized(&data)].concat(),
        );
        datas.push(data);
    }
    let hashed = || {
        let mut value = [0u8; 32];
        for data in &datas {
            let hash = Sha256::digest(data);
            value = Sha256::new().chain_update(value).chain_update(hash).finalize().into();
        }
        value
    };
    let target = Digest::new(&hashed())?;
    let mut good = 0usize;
    let rounds = 21;
    let (judged, raw, ratio) = compare(
        rounds,
        || {
            let mut replay = ImaReplay::new(&ImaStart::beginning(), [(SHA256, target)]);
            let Some(mut judge) = ImaJudge::new(&policy, 0, &[]) else { return };
            let pushed = replay.push_with_batches(&list, |entries| judge.entries(entries));
            let is_proven = pushed.and_then(|()| replay.finish()).is_ok_and(|ima| ima.entries() == IMA_ENTRIES as u64);
            good += usize::from(is_proven && judge.finish().report.is_clean());
        },
        || {
            black_box(hashed());
        },
    );
    ensure!(good == rounds + 1, "the list was good {good} times of {}", rounds + 1);
    let _ = raw;
    Ok(Ima { entries_per_s: IMA_ENTRIES as f64 / judged.as_secs_f64(), ratio })
}

/// How long a policy of many digests takes to load, in milliseconds, and how much memory it keeps.
fn policy() -> Result<(f64, usize)> {
    let json = policy_json(POLICY_DIGESTS)?;
    let mut times = Vec::new();
    let mut bytes = 0;
    for _ in 0..7 {
        let before = ALLOCATED.load(Ordering::Relaxed);
        let begun = now();
        let policy = Policy::parse(json.as_bytes())?;
        times.push(now() - begun);
        bytes = ALLOCATED.load(Ordering::Relaxed).saturating_sub(before);
        ensure!(policy.ima().is_some_and(|rules| rules.files().digests() == POLICY_DIGESTS), "a digest is missing");
    }
    Ok((median(&mut times).as_secs_f64() * 1000.0, bytes))
}

/// What one look-up in a policy of this size takes, in nanoseconds; half of the paths are listed.
fn lookup_ns(size: usize) -> Result<f64> {
    let policy = Policy::parse(policy_json(size)?.as_bytes())?;
    let files = policy.ima().context("rules")?.files();
    let paths: Vec<String> = shuffled(2 * size).into_iter().take(2000).map(path).collect();
    let mut times = Vec::new();
    for _ in 0..21 {
        let begun = now();
        for path in &paths {
            black_box(files.get(black_box(path.as_bytes())));
        }
        times.push(now() - begun);
    }
    Ok(median(&mut times).as_secs_f64() * 1e9 / paths.len() as f64)
}

/// Reading, replaying and judging a large boot log, in milliseconds: each of its events is listed in the policy.
fn boot_log() -> Result<f64> {
    let root = env::var_os("TREFOIL_VECTORS")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/vectors"), PathBuf::from);
    let bytes = fs::read(root.join("boot-logs/option-rom.bin")).unwrap_or_else(|_| synthetic_boot_log());
    let log = BootLog::parse(&bytes)?;
    let bank = *log.banks().last().context("a bank")?;
    let mut text = String::from("version = 1\nname = \"bench\"\naccept = [\"sha1\", \"no-firmware-measurements\"]\n");
    text.push_str("[boot]\npcrs = [0, 1, 2, 3, 4, 5, 6, 7]\n");
    for pcr in 0..8 {
        let mut digests: Vec<String> = log
            .events()
            .filter(|event| event.pcr == pcr && event.event_type != EV_NO_ACTION)
            .filter_map(|event| event.digest(bank).map(|digest| format!("\"{}\"", hex::encode(digest))))
            .collect();
        digests.sort();
        digests.dedup();
        if !digests.is_empty() {
            let digests = digests.join(", ");
            writeln!(text, "[[boot.event]]\nname = \"events of PCR {pcr}\"\npcr = {pcr}\ndigests = [{digests}]")?;
        }
    }
    let policy = Policy::parse(text.as_bytes())?;
    let rules = policy.boot().context("rules")?;
    let mut times = Vec::new();
    for _ in 0..101 {
        let begun = now();
        let read = ReadBootLog::read(&bytes, None, None)?;
        let mut report = control_plane::appraisal::finding::Report::default();
        let input = control_plane::appraisal::boot_rules::BootInput {
            log: &read.log,
            banks: &[bank],
            command_line: None,
            userspace: None,
        };
        control_plane::appraisal::boot_rules::judge(rules, &input, &mut report);
        black_box((&read.replayed, &report));
        times.push(now() - begun);
        ensure!(report.is_clean(), "the log is not good: {:?}", report.findings().first());
    }
    Ok(median(&mut times).as_secs_f64() * 1000.0)
}

/// A crypto-agile log with SHA-256 digests: 300 events.
fn synthetic_boot_log() -> Vec<u8> {
    let mut spec = b"Spec ID Event03\0".to_vec();
    spec.extend_from_slice(&[0, 0, 0, 0, 0, 2, 0, 2, 1, 0, 0, 0, 0x0b, 0, 32, 0, 0]);
    let mut log = Vec::new();
    log.extend_from_slice(&0u32.to_le_bytes());
    log.extend_from_slice(&EV_NO_ACTION.to_le_bytes());
    log.extend_from_slice(&[0; 20]);
    log.extend_from_slice(&sized(&spec));
    let mut number = 0u32;
    while log.len() < BOOT_LOG_LEN {
        let data = vec![number as u8; 200];
        log.extend_from_slice(&(number % 8).to_le_bytes());
        // EV_IPL.
        log.extend_from_slice(&0x0du32.to_le_bytes());
        log.extend_from_slice(&[1, 0, 0, 0, 0x0b, 0]);
        log.extend_from_slice(&SHA256.digest(&[&number.to_le_bytes(), &data]));
        log.extend_from_slice(&sized(&data));
        number += 1;
    }
    log
}
