//! Every target over its seeds and some thousand mutations of them, on any toolchain: no coverage guides it, but it runs
//! wherever the tests do, and the same inputs each time.
//!
//! `TREFOIL_FUZZ_ITERATIONS` (4000) and `TREFOIL_FUZZ_SECONDS` (4) say how long each target may take, whichever ends
//! first; `TREFOIL_FUZZ_SEED` (0) begins another sequence.

use std::{
    env, fs, panic,
    path::Path,
    time::{Duration, Instant},
};

use rand_core::RngCore as _;

use crate::{TARGETS, Target, script::XorShift};

/// Mutated inputs are cut to this many bytes, unless a seed is longer.
const MAX_INPUT_LEN: usize = 16 * 1024;

macro_rules! survives {
    ($($name:ident),*) => {
        $(#[test]
        fn $name() {
            smoke(stringify!($name));
        })*

        #[test]
        fn no_target_is_left_out() {
            assert_eq!(TARGETS.iter().map(|target| target.name).collect::<Vec<_>>(), [$(stringify!($name)),*]);
        }
    };
}

survives!(
    agent_machine,
    appraise,
    boot_log,
    boot_rules,
    coap_exchange,
    coap_frame,
    container,
    cpio,
    ek_certificate,
    glob,
    ima_ascii,
    ima_log,
    ima_rules,
    initrd,
    keylime_import,
    manifest,
    message_decode,
    payload_opener,
    pcr_file,
    pcr_selection,
    policy,
    sealed_share,
    tpm_attest,
    tpm_public,
    tpm_response,
    tpm_signature,
    userspace_log
);

fn setting(name: &str, default: u64) -> u64 {
    env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is no number")))
}

fn smoke(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target of this name");
    let iterations = setting("TREFOIL_FUZZ_ITERATIONS", 4_000);
    let until = Instant::now() + Duration::from_secs(setting("TREFOIL_FUZZ_SECONDS", 4));
    let seeds = (target.seeds)();
    assert!(!seeds.is_empty());
    for seed in &seeds {
        run(target, seed);
    }
    run(target, &[]);
    let mut rng = XorShift::new(setting("TREFOIL_FUZZ_SEED", 0));
    let mut done = 0;
    while done < iterations && Instant::now() < until {
        let input = if rng.below(8) == 0 { random(&mut rng) } else { mutated(&mut rng, &seeds) };
        run(target, &input);
        done += 1;
    }
    println!("{} seeds, {done} mutations", seeds.len());
}

/// Runs a target; keeps the input where cargo-fuzz would if it does not survive.
fn run(target: &Target, input: &[u8]) {
    let Err(cause) = panic::catch_unwind(|| (target.run)(input)) else { return };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("artifacts").join(target.name);
    let digest = <sha2::Sha256 as sha2::Digest>::digest(input);
    let file = folder.join(format!("smoke-{:016x}", u64::from_be_bytes(*digest.first_chunk().expect("32 bytes"))));
    let kept = fs::create_dir_all(&folder).and_then(|()| fs::write(&file, input));
    eprintln!("{}: {} bytes, kept in {}: {kept:?}", target.name, input.len(), file.display());
    panic::resume_unwind(cause);
}

fn random(rng: &mut XorShift) -> Vec<u8> {
    let most = [16, 64, 512][rng.below(3)];
    let len = rng.below(most);
    let mut bytes = vec![0; len];
    rng.fill_bytes(&mut bytes);
    bytes
}

/// One seed after a few changes, each of a kind that has found something before.
fn mutated(rng: &mut XorShift, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = seeds[rng.below(seeds.len())].clone();
    let most = bytes.len().max(MAX_INPUT_LEN);
    for _ in 0..=rng.below(4) {
        if bytes.is_empty() {
            bytes = random(rng);
            continue;
        }
        // Structure is at the front: every other change is made there.
        let reach = if rng.below(2) == 0 { bytes.len().min(64) } else { bytes.len() };
        let at = rng.below(reach);
        let end = at + rng.below((bytes.len() - at).min(40) + 1);
        match rng.below(10) {
            0 => bytes[at] ^= 1 << rng.below(8),
            1 => bytes[at] = rng.next_u32() as u8,
            2 => bytes[at] = [0, 1, 0x7f, 0x80, 0xfe, 0xff][rng.below(6)],
            3 => bytes.truncate(at),
            4 => drop(bytes.drain(at..end)),
            5 => {
                let copy = bytes[at..end].to_vec();
                let to = rng.below(bytes.len());
                bytes.splice(to..to, copy);
            }
            6 => {
                let number = [0, 1, 0x7fff, 0xffff, bytes.len(), bytes.len() - at][rng.below(6)] as u32;
                let number = if rng.below(2) == 0 { number.to_be_bytes() } else { number.to_le_bytes() };
                let width = [2, 4][rng.below(2)];
                let number = if number[0] == 0 { &number[4 - width..] } else { &number[..width] };
                for (to, from) in bytes[at..].iter_mut().zip(number) {
                    *to = *from;
                }
            }
            7 => {
                let mut insert = random(rng);
                insert.truncate(8);
                bytes.splice(at..at, insert);
            }
            8 => bytes[at] = bytes[at].wrapping_add([1, 0xff][rng.below(2)]),
            _ => {
                // The front of one, the end of another.
                let other = &seeds[rng.below(seeds.len())];
                let from = rng.below(other.len().max(1)).min(other.len());
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
        }
        bytes.truncate(most);
    }
    bytes
}
