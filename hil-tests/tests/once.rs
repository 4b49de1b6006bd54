//! An agent in an initramfs: it fetches the payload once, says by its exit code what came of it, and gives out what it
//! fetched; after the root was switched, a second start goes on attesting.

mod fleet;
mod misled;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Context, Result, ensure};
use fleet::{Fleet, JUDGED_PCR, Line, PHASE_PCR, has_files};
use hil_tests::rig::{self, Agent, NodeAdd};
use hil_tests::rogue::server::{Canned, RogueCa};
use hil_tests::spawn::{Launch, Program};
use hil_tests::swtpm::{EkKind, Swtpm};
use hil_tests::sys;
use misled::{FILES, Scene};
use protocol::coap::frame::Code;
use protocol::coap::route::RouteName;
use protocol::crypto::TenantPublicKey;
use protocol::crypto::manifest::{DELIVERED_EVENT, pins_event};
use protocol::tpm::alg::{Digest, HashAlg};
use protocol::tpm::pcr::{event_digest, extend};

/// Longer than anything takes that is going to happen.
const SOON: Duration = Duration::from_secs(60);
/// A disk key with every byte that a careless reader loses.
const KEY: &[u8] = b"\0\r\n\xff key of \x1b[2J root\n\n";
const DISK: [(&str, &[u8]); 3] =
    [("app.toml", b"answer = 42\n"), ("cryptsetup/root.key", KEY), ("cryptsetup/bad name.key", b"not linked")];

/// The agent's exit code.
fn code(agent: &Agent) -> Result<Option<i32>> {
    Ok(agent.wait_exit(SOON).with_context(|| agent.tail(20))?.code())
}

/// It ended with this code, and its last line says why.
fn ends(agent: &Agent, expected: i32, words: &str) -> Result<()> {
    let code = code(agent)?;
    ensure!(code == Some(expected), "it ended with {code:?}, not {expected}\n{}", agent.tail(20));
    let lines = agent.lines();
    let last = lines.last().context("it said nothing")?;
    ensure!(last.contains(words), "its last line is not about `{words}`\n{}", agent.tail(20));
    Ok(())
}

/// The phase PCR after the operator's pins and then, perhaps, the delivery.
fn phase(fleet: &Fleet, autorun: bool, delivered: bool) -> Result<String> {
    let pins = pins_event(&[fleet_key(fleet)?], autorun)?;
    let mut value = Digest::zero(HashAlg::Sha256);
    for event in [pins.as_slice(), DELIVERED_EVENT].into_iter().take(1 + usize::from(delivered)) {
        value = extend(HashAlg::Sha256, &value, &event_digest(HashAlg::Sha256, event))?;
    }
    Ok(hex::encode(value.as_bytes()))
}

fn fleet_key(fleet: &Fleet) -> Result<TenantPublicKey> {
    Ok(fleet.signing_key()?.public())
}

/// Settings of an agent that nobody has added, or that finds another gateway or authority.
fn settings(fleet: &Fleet, name: &str, server: SocketAddr, ca: Option<&Path>) -> Result<PathBuf> {
    let operator = fleet.rig.operator_dir();
    let path = fleet.rig.dir().join(format!("{name}.conf"));
    let ca = ca.map_or_else(|| operator.join("server-ca.pem"), Path::to_owned);
    let key = operator.join("tenant-key.pem");
    fs::write(&path, format!("server = {server}\nca = {}\ntenant-key = {}\n", ca.display(), key.display()))?;
    Ok(path)
}

/// A port of this machine where nobody listens.
fn nobody() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// `trefoil-agent --print FILE`, with no other setting than where the payload is.
fn print(fleet: &Fleet, payload_dir: &Path, file: &str) -> Result<Output> {
    let none = fleet.rig.dir().join("none.conf");
    fs::write(&none, "")?;
    let mut command = fleet.rig.agent_command("device", &none)?;
    Ok(command.arg("--payload-dir").arg(payload_dir).args(["--print", file]).output()?)
}

#[test]
fn a_payload_is_fetched_once_and_the_second_start_of_the_boot_only_attests() -> Result<()> {
    need_tpm!();
    let fleet = Fleet::shared()?;
    let tpm = fleet.tpm(EkKind::P256)?;
    let payload = fleet.rig.payload("disk", &DISK)?;
    fleet.add("disk", NodeAdd::id(fleet.rig.node_id(&tpm)?).payload(payload))?;
    let keys = fleet.rig.memory()?.join("disk/cryptsetup-keys.d");
    let keys_dir = format!("--cryptsetup-keys-dir={}", keys.display());
    let agent = fleet.rig.agent(&tpm, "disk", &["--once", "--timeout", "60s", &keys_dir])?;
    ensure!(code(&agent)? == Some(0), "{}", agent.tail(20));
    has_files(&agent, &DISK)?;
    ensure!(tpm.pcr(PHASE_PCR)? == phase(&fleet, false, true)?, "the phase PCR does not say that it was delivered");
    let node = fleet.rig.node("disk")?;
    ensure!(node["phase"] == "delivered", "it ended before the tenant knew: {node}");

    // The disk's key, for systemd-cryptsetup and for a keyscript.
    let links: Vec<_> = fs::read_dir(&keys)?.map(|entry| Ok(entry?.file_name())).collect::<Result<_>>()?;
    ensure!(links == ["root.key"], "{links:?}");
    ensure!(fs::read_link(keys.join("root.key"))? == agent.payload_dir().join("cryptsetup/root.key"));
    ensure!(fs::read(keys.join("root.key"))? == KEY);
    ensure!(agent.tail(20).contains("bad name.key is not linked"), "{}", agent.tail(20));
    let printed = print(&fleet, agent.payload_dir(), "cryptsetup/root.key")?;
    ensure!(printed.status.success() && printed.stdout == KEY && printed.stderr.is_empty(), "{printed:?}");
    let absolute = agent.payload_dir().join("app.toml").display().to_string();
    for file in ["cryptsetup/other.key", "../payload/app.toml", "cryptsetup/../app.toml", &absolute, "cryptsetup", ""] {
        let refused = print(&fleet, agent.payload_dir(), file)?;
        ensure!(refused.status.code() == Some(1) && refused.stdout.is_empty(), "`{file}`: {refused:?}");
        ensure!(String::from_utf8_lossy(&refused.stderr).lines().count() == 1, "`{file}`: {refused:?}");
    }

    // The root is switched: the same payload directory, the same PCRs, another process that wants less.
    let agent = fleet.rig.agent(&tpm, "disk", &["--wants", "attest", &keys_dir])?;
    let after = fleet.judged_anew("disk", "good")?;
    ensure!(after["ak_name"] == node["ak_name"] && after["ak_name"].is_string(), "another AK: {node} {after}");
    ensure!(after["phase"] == "delivered" && after["delivered"] == node["delivered"], "{after}");
    fleet.judged_anew("disk", "good")?;
    ensure!(fleet.releases("disk")?.len() == 2, "shares left again: {:#?}", fleet.releases("disk")?);
    ensure!(fleet.kinds("disk")?.iter().filter(|kind| *kind == "delivered").count() == 1);
    ensure!(tpm.pcr(PHASE_PCR)? == phase(&fleet, false, true)?, "the second start extended the phase PCR");
    has_files(&agent, &DISK)?;
    drop(agent);

    // Whoever asks for it once more is told that it is there.
    let agent = fleet.rig.agent(&tpm, "disk", &["--once", "--timeout", "60s", &keys_dir])?;
    ends(&agent, 0, "in place already")?;
    ensure!(fleet.releases("disk")?.len() == 2, "shares left again");
    Ok(())
}

#[test]
fn a_second_start_with_other_pins_says_so_and_gets_nothing() -> Result<()> {
    need_tpm!();
    let fleet = Fleet::shared()?;
    let node = fleet.expected("repinned", EkKind::P256)?;
    let agent = fleet.rig.agent(&node.tpm, "repinned", &["--once", "--timeout", "60s"])?;
    ensure!(code(&agent)? == Some(0), "{}", agent.tail(20));
    let pinned = node.tpm.pcr(PHASE_PCR)?;
    let agent = fleet.rig.agent(&node.tpm, "repinned", &["--wants", "attest", "--autorun"])?;
    agent.wait_for_line(SOON, |line| line.contains("does not hold these settings' pins"))?;
    fleet.judged_anew("repinned", "good")?;
    ensure!(node.tpm.pcr(PHASE_PCR)? == pinned, "it measured other pins over the first ones");
    ensure!(fleet.releases("repinned")?.len() == 2, "shares left again");
    Ok(())
}

#[test]
fn a_confirmation_that_has_no_answer_is_no_failure_and_is_sent_by_the_second_start() -> Result<()> {
    need_stage!();
    let mut scene = Scene::new("unconfirmed")?;
    scene.start_with(&["--once", "--timeout", "10s"])?;
    let mut session = scene.session()?;
    session.desk.intercept = Some(Box::new(|request| {
        request.route.is_ok_and(|route| route.name() == RouteName::Confirm).then_some(Canned::Silence)
    }));
    let sealing = scene.stage.sealing(session.node_id()?)?;
    session.deliver(&sealing)?;
    session.serve_until(SOON, |record| record.count(RouteName::Confirm) == 1)?;
    // Its time is up while it waits for the answer.
    ends(scene.agent()?, 0, "its confirmation is left to the next start")?;
    let wanted: Vec<_> = FILES.iter().map(|(path, bytes)| ((*path).to_owned(), bytes.to_vec())).collect();
    ensure!(scene.files()?.into_iter().collect::<Vec<_>>() == wanted, "{:?}", scene.files()?.keys());
    drop(session);

    scene.start_with(&["--wants", "attest"])?;
    let mut session = scene.session()?;
    ensure!(session.record.hellos.iter().all(|hello| hello.wants == protocol::message::enrol::Wants::Attest));
    session.challenge(&hil_tests::rogue::server::ChallengeSpec::new(
        protocol::id::Role::Verifier,
        protocol::message::attest::Purpose::Attest,
    ))?;
    session.serve_until(SOON, |record| !record.confirms.is_empty())?;
    let confirm = &session.record.confirms.first().context("no confirm")?.confirm;
    ensure!(confirm.sealing_id == sealing.sealing_id, "it confirms another sealing");
    Ok(())
}

#[test]
fn a_confirmation_that_is_refused_ends_it_too() -> Result<()> {
    need_stage!();
    let mut scene = Scene::new("unknown-release")?;
    scene.start_with(&["--once", "--timeout", "60s"])?;
    let mut session = scene.session()?;
    session.desk.intercept = Some(Box::new(|request| {
        let is_confirm = request.route.is_ok_and(|route| route.name() == RouteName::Confirm);
        is_confirm.then(|| Canned::Answer(Code::NOT_FOUND, b"no such release".to_vec()))
    }));
    let sealing = scene.stage.sealing(session.node_id()?)?;
    session.deliver(&sealing)?;
    session.serve_until(SOON, |record| record.count(RouteName::Confirm) == 1)?;
    // The refusal is sent with the next turn.
    session.serve_for(Duration::from_millis(50))?;
    ensure!(code(scene.agent()?)? == Some(0), "{}", scene.tail());
    Ok(())
}

#[test]
fn a_payload_that_this_node_refuses_is_exit_code_4_with_the_reason() -> Result<()> {
    need_stage!();
    let mut scene = Scene::new("refused-by-us")?;
    scene.start_with(&["--once", "--timeout", "10s"])?;
    let mut session = scene.session()?;
    let mut sealing = scene.stage.sealing(session.node_id()?)?;
    sealing.sign_by(&protocol::crypto::TenantSigningKey::generate(&mut rand_core::OsRng));
    sealing.announce();
    session.deliver(&sealing)?;
    session.wait_report(SOON)?;
    drop(session);
    ends(scene.agent()?, 4, "is not signed by a tenant key pinned on this node")?;
    scene.nothing_came()
}

#[test]
fn a_payload_that_would_go_to_disk_is_a_fault_of_this_machine() -> Result<()> {
    need_stage!();
    let stage = misled::Stage::shared()?;
    if hil_tests::sys::is_memory_fs(stage.rig.dir())? {
        println!("skipped: the scratch directory is in memory");
        return Ok(());
    }
    let mut scene = Scene::new("to-disk")?.payload_at(stage.rig.dir().join("on-disk/payload"));
    scene.start_with(&["--once", "--timeout", "10s"])?;
    let mut session = scene.session()?;
    let sealing = scene.stage.sealing(session.node_id()?)?;
    session.deliver(&sealing)?;
    session.wait_report(SOON)?;
    drop(session);
    ends(scene.agent()?, 1, "is not on a tmpfs or ramfs: plaintext is kept in memory only")
}

#[test]
fn a_gateway_that_is_not_there_is_exit_code_3_within_the_time() -> Result<()> {
    need_tpm!();
    let fleet = Fleet::shared()?;
    let tpm = fleet.tpm(EkKind::P256)?;
    let config = settings(&fleet, "nobody", nobody()?, None)?;
    let began = Instant::now();
    let agent = fleet.rig.agent_with(&tpm, "nobody", &config, &["--once", "--timeout", "2s"])?;
    ends(&agent, 3, "no gateway was reached: 127.0.0.1:")?;
    ensure!(began.elapsed() >= Duration::from_secs(2), "it gave up after {:?}", began.elapsed());
    ensure!(agent.payload()?.is_empty(), "a payload came");
    Ok(())
}

#[test]
fn a_gateway_that_is_not_ours_is_exit_code_3() -> Result<()> {
    need_tpm!();
    let fleet = Fleet::shared()?;
    let node = fleet.expected("misdirected", EkKind::P256)?;
    let dir = fleet.rig.dir().join("other-ca");
    fs::create_dir(&dir)?;
    let ca = RogueCa::new("another CA")?.write_pem(&dir)?;
    let config = settings(&fleet, "misdirected", fleet.rig.gateway(), Some(&ca))?;
    let agent = fleet.rig.agent_with(&node.tpm, "misdirected", &config, &["--once", "--timeout", "6s"])?;
    ends(&agent, 3, "the server's certificate was not issued directly by a pinned certificate authority")?;
    ensure!(agent.steps().iter().all(|step| step.step != "hello"), "it said hello to it");
    Ok(())
}

#[test]
fn the_time_counts_over_restarts_of_the_worker() -> Result<()> {
    need_tpm!();
    let fleet = Fleet::shared()?;
    let tpm = fleet.tpm(EkKind::P256)?;
    let config = settings(&fleet, "killed", nobody()?, None)?;
    let agent = fleet.rig.agent_with(&tpm, "killed", &config, &["--once", "--timeout", "6s"])?;
    for _ in 0..2 {
        let from = agent.line_count();
        agent.wait_for_line_from(from, SOON, |line| line.contains("trying again"))?;
        agent.kill_worker()?;
        agent.wait_for_line_from(from, SOON, |line| line.contains("the worker was ended by signal 9"))?;
    }
    ends(&agent, 3, "no gateway was reached")
}

/// Starts an agent whose payload has an autorun that runs until [`let_go`], and waits for that to begin.
fn autorun_is_running(fleet: &Fleet, name: &str, server: SocketAddr) -> Result<(Swtpm, Agent)> {
    let script = b"#!/bin/sh\necho $$ > begins\nmv begins begun\nwhile [ ! -e go ]; do sleep 0.05; done\n: > ended\n";
    let payload = fleet.rig.payload(name, &[("autorun", script.as_slice())])?;
    fs::set_permissions(payload.join("autorun"), fs::Permissions::from_mode(0o755))?;
    let tpm = fleet.tpm(EkKind::P256)?;
    fleet.add(name, NodeAdd::id(fleet.rig.node_id(&tpm)?).payload(payload).arg("--autorun"))?;
    let config = settings(fleet, name, server, None)?;
    let agent = fleet.rig.agent_with(&tpm, name, &config, &["--once", "--autorun"])?;
    let deadline = Instant::now() + SOON;
    while !agent.payload_dir().join("begun").exists() {
        ensure!(Instant::now() < deadline, "autorun does not begin\n{}", agent.tail(20));
        thread::sleep(Duration::from_millis(20));
    }
    Ok((tpm, agent))
}

/// Has autorun end, and the agent after it, without a fault.
fn let_go(agent: &Agent) -> Result<()> {
    ensure!(agent.is_running(), "it did not wait for autorun\n{}", agent.tail(20));
    fs::write(agent.payload_dir().join("go"), "")?;
    ensure!(code(agent)? == Some(0), "{}", agent.tail(20));
    ensure!(agent.payload_dir().join("ended").exists(), "autorun was ended\n{}", agent.tail(20));
    Ok(())
}

#[test]
fn a_connection_that_breaks_while_autorun_runs_keeps_nobody_waiting() -> Result<()> {
    need_tpm!();
    let fleet = Fleet::shared()?;
    for comes_back in [true, false] {
        let name = format!("broken-{comes_back}");
        let line = Line::lay(fleet.rig.gateway())?;
        let (_tpm, agent) = autorun_is_running(&fleet, &name, line.address())?;
        let from = agent.line_count();
        if comes_back {
            let steps = agent.step_count();
            ensure!(line.cut() == 1, "there was no connection to cut");
            agent.wait_for_step(steps, SOON, |step| step.step == "hello" && step.text("phase") == "end")?;
        } else {
            drop(line);
            agent.wait_for_line_from(from, SOON, |line| line.contains("trying again"))?;
        }
        let_go(&agent)?;
    }
    Ok(())
}

#[test]
fn autorun_ends_by_itself_though_the_worker_that_asked_for_it_has_died() -> Result<()> {
    need_tpm!();
    let fleet = Fleet::shared()?;
    let (_tpm, agent) = autorun_is_running(&fleet, "orphaned", fleet.rig.gateway())?;
    let from = agent.line_count();
    // Not the newest child, which is autorun: the one that was told whose worker it is.
    let flag = format!("--worker={}\0", agent.pid());
    let is_worker =
        |pid: &u32| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.ends_with(flag.as_bytes()));
    let mut pids = fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    sys::signal(pids.find(is_worker).context("there is no worker")?, sys::SIGKILL)?;
    // The next worker finds all in place and ends.
    agent.wait_for_line_from(from, SOON, |line| line.contains("in place already"))?;
    let_go(&agent)
}

#[test]
fn autorun_ends_with_an_agent_that_is_killed() -> Result<()> {
    need_tpm!();
    let fleet = Fleet::shared()?;
    let (_tpm, agent) = autorun_is_running(&fleet, "killed-with", fleet.rig.gateway())?;
    let pid: u32 = fs::read_to_string(agent.payload_dir().join("begun"))?.trim().parse()?;
    let runs = || fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|line| !line.contains(") Z "));
    ensure!(runs(), "autorun does not run");
    agent.signal(sys::SIGKILL)?;
    let deadline = Instant::now() + SOON;
    while runs() {
        ensure!(Instant::now() < deadline, "autorun runs on without the agent");
        thread::sleep(Duration::from_millis(20));
    }
    ensure!(!agent.payload_dir().join("ended").exists(), "it ended by itself");
    Ok(())
}

#[test]
fn a_machine_that_nobody_knows_is_exit_code_4_and_told_what_would_help() -> Result<()> {
    need_tpm!();
    let fleet = Fleet::shared()?;
    let tpm = fleet.tpm(EkKind::P256)?;
    let config = settings(&fleet, "never", fleet.rig.gateway(), None)?;
    let agent = fleet.rig.agent_with(&tpm, "never", &config, &["--once", "--timeout", "8s"])?;
    ends(&agent, 4, "quarantined")?;
    ensure!(agent.payload()?.is_empty(), "a payload came");
    let agent = fleet.rig.agent_with(&tpm, "never", &config, &["--once", "--colour", "blue"])?;
    ends(&agent, 2, "there is no setting `colour`")
}

#[test]
fn a_machine_that_booted_otherwise_is_exit_code_4_and_told_where_the_reason_is() -> Result<()> {
    need_tpm!();
    let fleet = Fleet::shared()?;
    let node = fleet.expected("otherwise", EkKind::P256)?;
    node.tpm.pcr_extend(JUDGED_PCR, &"5a".repeat(32))?;
    let agent = fleet.rig.agent(&node.tpm, "otherwise", &["--once", "--timeout", "8s"])?;
    ends(&agent, 4, "no payload was released; `trefoil node events NAME` says why")?;
    ensure!(agent.payload()?.is_empty(), "a payload came");
    ensure!(fleet.releases("otherwise")?.is_empty(), "a share left");
    ensure!(fleet.kinds("otherwise")?.iter().any(|kind| kind == "pcr_mismatch"), "{:?}", fleet.kinds("otherwise")?);
    Ok(())
}

#[test]
fn a_machine_without_tpm_or_key_file_is_exit_code_1() -> Result<()> {
    need_tpm!();
    let fleet = Fleet::shared()?;
    let config = settings(&fleet, "bare", fleet.rig.gateway(), None)?;
    let at = |tcti: &str, extra: &[&str]| {
        let payload = fleet.rig.memory()?.join("bare/payload");
        fleet.rig.agent_at(tcti, "bare", &config, payload, extra)
    };
    let agent = at("device:/nonexistent/tpmrm0", &["--once", "--timeout", "2s"])?;
    ends(&agent, 1, "this machine is not ready: the TPM: ")?;
    let agent = at("device:/nonexistent/tpmrm0", &["--once", "--tenant-key", "/nonexistent/key.pem"])?;
    ends(&agent, 1, "tenant-key /nonexistent/key.pem: ")
}

/// Wherever they come from: pins that an attacker put on the kernel's command line are in the phase PCR before anyone
/// hears from the agent.
#[test]
fn the_pins_are_in_the_phase_pcr_before_the_first_connection() -> Result<()> {
    need_tpm!();
    let fleet = Fleet::shared()?;
    for autorun in [false, true] {
        let tpm = fleet.tpm(EkKind::P256)?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let name = format!("pins-{autorun}");
        let config = settings(&fleet, &name, listener.local_addr()?, None)?;
        let switch = if autorun { "--autorun=on" } else { "--autorun=off" };
        let agent = fleet.rig.agent_with(&tpm, &name, &config, &[switch])?;
        let first = first_connection(&listener).with_context(|| agent.tail(20))?;
        ensure!(tpm.pcr(PHASE_PCR)? == phase(&fleet, autorun, false)?, "the pins are not in the phase PCR");
        // Nobody there is known sooner than nobody who answers.
        drop((first, listener));
        said_by_check(&fleet, &tpm, &config, switch)?;
    }
    Ok(())
}

/// Runs the agent where the kernel's command line is this one: under a mount of its own over `/proc/cmdline`. `None` where
/// that cannot be had.
fn booted_with(fleet: &Fleet, name: &str, line: &str) -> Result<Option<Program>> {
    let (path, none) = (fleet.rig.dir().join(format!("{name}.cmdline")), fleet.rig.dir().join("none.conf"));
    fs::write(&path, line)?;
    fs::write(&none, "")?;
    let private = |command: &str| {
        let mut unshare = Command::new("unshare");
        let script = format!("mount --bind \"$1\" /proc/cmdline && shift && {command}");
        unshare.args(["--mount", "--", "sh", "-c", &script, "sh"]).arg(&path);
        unshare
    };
    let seen = private("cat /proc/cmdline").output();
    if !seen.is_ok_and(|seen| seen.stdout == line.as_bytes()) {
        println!("skipped: another kernel command line cannot be shown here (unshare and mount take root)");
        return Ok(None);
    }
    let mut command = private("exec \"$@\"");
    command.arg(rig::agent_binary()?).arg("--config").arg(none).arg("--cryptsetup-keys-dir").arg(fleet.rig.dir());
    Program::start(Launch::new(name, command)).map(Some)
}

/// Everything that an agent needs, as kernel arguments.
fn kernel_line(fleet: &Fleet, tpm: &Swtpm, payload_dir: &Path) -> String {
    let operator = fleet.rig.operator_dir();
    format!(
        "BOOT_IMAGE=/vmlinuz root=/dev/vda1 ro quiet trefoil.server={} trefoil.server={} trefoil.ca={} \
         trefoil.tenant-key=\"{}\" trefoil.tcti={} trefoil.payload-dir={} trefoil.once trefoil.timeout=20s \
         trefoil.phase-pcr=13 trefoil.log=debug",
        SocketAddr::from((Ipv4Addr::LOCALHOST, 1)), // nobody: the next is tried
        fleet.rig.gateway(),
        operator.join("server-ca.pem").display(),
        operator.join("tenant-key.pem").display(),
        tpm.tcti(),
        payload_dir.display(),
    )
}

#[test]
fn every_setting_can_come_from_the_kernels_command_line_but_changed_pins_lead_to_no_payload() -> Result<()> {
    need_tpm!();
    let fleet = Fleet::shared()?;
    let node = fleet.expected("kernel", EkKind::P256)?;
    let payload_dir = fleet.rig.memory()?.join("kernel/payload");
    fs::create_dir_all(payload_dir.parent().context("no parent")?)?;
    // Somebody at the boot menu allows what the operator did not.
    let line = kernel_line(&fleet, &node.tpm, &payload_dir);
    let Some(agent) = booted_with(&fleet, "kernel", &format!("{line} trefoil.autorun\n"))? else { return Ok(()) };
    let status = agent.wait_exit(SOON)?;
    ensure!(status.code() == Some(4), "{status}\n{}", agent.tail(30));
    ensure!(!payload_dir.exists() && fleet.releases("kernel")?.is_empty(), "a share left");
    let verdict = fleet.rig.node("kernel")?["last_verdict"].to_string();
    ensure!(verdict.contains("phase_pcr_mismatch"), "refused for another reason: {verdict}");
    ensure!(node.tpm.pcr(PHASE_PCR)? == phase(&fleet, true, false)?, "the phase PCR does not show the changed pins");

    // The next boot, without.
    node.tpm.reset()?;
    node.tpm.play_firmware()?;
    fleet.rig.trefoil(&["node", "resume", "kernel"])?;
    let Some(agent) = booted_with(&fleet, "kernel", &format!("{line}\n"))? else { return Ok(()) };
    let status = agent.wait_exit(SOON)?;
    ensure!(status.code() == Some(0), "{status}\n{}", agent.tail(30));
    ensure!(fs::read(payload_dir.join("app.toml"))? == b"answer = 42\n", "another payload");
    fleet.rig.wait_phase("kernel", "delivered", SOON)?;

    // A join token is not taken from there: nothing begins.
    let Some(agent) = booted_with(&fleet, "kernel", &format!("{line} trefoil.join=trefoil-join-x\n"))? else {
        return Ok(());
    };
    let status = agent.wait_exit(SOON)?;
    ensure!(status.code() == Some(2) && agent.tail(5).contains("every process can read it"), "{}", agent.tail(5));
    Ok(())
}

fn first_connection(listener: &TcpListener) -> Result<std::net::TcpStream> {
    listener.set_nonblocking(true)?;
    let deadline = Instant::now() + SOON;
    loop {
        match listener.accept() {
            Ok((stream, _)) => return Ok(stream),
            Err(why) if why.kind() != std::io::ErrorKind::WouldBlock => return Err(why.into()),
            Err(_) => ensure!(Instant::now() < deadline, "no agent connected within {SOON:?}"),
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// `--check` says where each pin was set.
fn said_by_check(fleet: &Fleet, tpm: &Swtpm, config: &Path, switch: &str) -> Result<()> {
    let output = fleet.rig.agent_command(&tpm.tcti(), config)?.args([switch, "--check"]).output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let autorun = format!("autorun: {} from a flag", switch.trim_start_matches("--autorun="));
    for words in ["tenant-key: 1 pinned from the settings file", &autorun, "holds this configuration's pins"] {
        ensure!(said.lines().any(|line| line.starts_with("ok ") && line.contains(words)), "no `{words}` in\n{said}");
    }
    Ok(())
}
