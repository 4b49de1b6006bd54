//! Networks as agents find them: names with dead addresses, gateways that are not there, routers that forget
//! connections, ends that vanish without a word, addresses that change, lost packets, paths for short packets only.
//!
//! Each scenario has its own two network namespaces with a path between them, the machine at the near end, the control
//! plane at the far one. What has to come of all of them: the payload, and after every mishap a node that is good again
//! without anybody's help.

mod fleet;

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fleet::{Fleet, Node, has_files};
use hil_tests::netns::{self, Forgotten, Namespace, NetPath};
use hil_tests::rig::{self, NodeAdd, Options, Store};
use hil_tests::scratch::Scratch;
use hil_tests::swtpm::EkKind;
use hil_tests::sys;
use serde_json::Value;

/// Longer than anything takes here that is going to happen.
const LONG: Duration = Duration::from_secs(120);
/// The control plane's addresses.
const FAR: [&str; 5] = ["10.77.0.2/24", "10.77.0.3/24", "10.77.0.4/24", "10.77.0.200/24", "fd77::2/64"];
/// What its certificate names besides them.
const NAME: &str = "gw.test";
const PORT: u16 = 5684;

/// Leaves a test early, with a word, where the machine has no TPM emulator or lets us make no networks.
macro_rules! need_network {
    () => {
        need_tpm!();
        if let Some(why) = netns::missing() {
            println!("{why}");
            return Ok(());
        }
    };
}

/// A control plane at the far end of a path, and the place of a machine at its near end.
struct Site {
    fleet: Fleet,
    path: NetPath,
    near: Namespace,
    far: Namespace,
}

impl Site {
    fn new() -> Result<Self> {
        Self::with(Options::default())
    }

    fn with(options: Options) -> Result<Self> {
        let (near, far) = (Namespace::new()?, Namespace::new()?);
        let path = NetPath::lay((&near, &["10.77.0.1/24", "fd77::1/64"]), (&far, &FAR))?;
        let mut init: Vec<String> = vec!["--name".into(), NAME.into()];
        for address in FAR {
            let address = address.split('/').next().unwrap_or_default();
            init.extend(["--name".into(), address.to_owned()]);
        }
        let any = if netns::has_ipv6() { SocketAddr::from(([0; 8], PORT)) } else { SocketAddr::from(([0; 4], PORT)) };
        // A server on the machine's own loopback is not to be reached from here.
        let gateway = options.gateway.or(Some(any));
        let options = Options { store: Store::Sqlite, gateway, init, ..options };
        let fleet = far.run(|| Fleet::new(options))?;
        Ok(Self { fleet, path, near, far })
    }

    /// A machine whose agent has not been started, and whose node is judged in this interval.
    fn machine(&self, name: &str, kind: EkKind, interval: &str, payload: Option<&Path>) -> Result<Node> {
        let (tpm, id) = self.near.run(|| {
            let tpm = self.fleet.tpm(kind)?;
            let id = self.fleet.rig.node_id(&tpm)?;
            Ok((tpm, id))
        })?;
        let node = NodeAdd::id(id).policy(&self.fleet.policy).payload(payload.unwrap_or(&self.fleet.payload));
        self.far.run(|| self.fleet.rig.node_add(name, &node.arg("--interval").arg(interval)))?;
        Ok(Node { name: name.into(), agent: None, tpm })
    }

    /// Starts its agent with these servers.
    fn start(&self, node: &mut Node, servers: &[&str]) -> Result<()> {
        let config = self.far.run(|| self.fleet.rig.agent_config(&node.name))?;
        let text = fs::read_to_string(&config)?;
        let others = text.lines().filter(|line| !line.starts_with("server"));
        let servers = servers.iter().map(|server| format!("server = {server}"));
        fs::write(&config, others.map(str::to_owned).chain(servers).collect::<Vec<_>>().join("\n"))?;
        node.agent = Some(self.near.run(|| self.fleet.rig.agent_with(&node.tpm, &node.name, &config, &[]))?);
        Ok(())
    }

    /// A machine that has its payload and is judged in this interval.
    fn node(&self, name: &str, interval: &str, servers: &[&str]) -> Result<Node> {
        let mut node = self.machine(name, EkKind::P256, interval, None)?;
        self.start(&mut node, servers)?;
        self.is_delivered(&node)?;
        Ok(node)
    }

    fn is_delivered(&self, node: &Node) -> Result<()> {
        self.far.run(|| {
            self.fleet.rig.wait_phase(&node.name, "delivered", LONG)?;
            self.fleet.rig.wait_trust(&node.name, "good", LONG)
        })?;
        has_files(node.agent()?, &fleet::PAYLOAD)
    }

    /// Waits until this is the node's trust by a verdict that was asked for after now.
    fn judged_anew(&self, node: &Node) -> Result<Value> {
        self.far.run(|| {
            let now_ms = self.fleet.rig.node(&node.name)?["now_ms"].as_i64().context("no clock")?;
            self.fleet.rig.wait_node(&node.name, "good by a new verdict", LONG, |state| {
                let at_ms = state["last_verdict"]["at_ms"].as_i64();
                state["trust"] == "good" && at_ms.is_some_and(|at_ms| at_ms > now_ms)
            })
        })
    }
}

/// Somebody who answers and hangs up.
struct Stranger {
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Stranger {
    fn at(listener: TcpListener) -> Result<Self> {
        listener.set_nonblocking(true)?;
        let ends = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&ends);
        let thread = thread::spawn(move || {
            while !seen.load(Ordering::SeqCst) {
                // Whoever comes is dropped; nobody is the usual case.
                if listener.accept().is_err() {
                    thread::sleep(Duration::from_millis(10));
                }
            }
        });
        Ok(Self { ends, thread: Some(thread) })
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            eprintln!("the stranger panicked");
        }
    }
}

/// How often the agent has begun to connect, from line number `from` on, and where to.
fn dialled(node: &Node, from: usize) -> Result<Vec<String>> {
    let lines = node.agent()?.lines();
    let target = |line: &String| {
        let (_, rest) = line.split_once("connecting to ")?;
        Some(rest.split(['"', ' ']).next().unwrap_or_default().to_owned())
    };
    Ok(lines.iter().skip(from).filter_map(target).collect())
}

#[test]
fn a_name_is_reached_at_the_address_that_is_its_gateways_and_not_held_up_by_others() -> Result<()> {
    need_network!();
    // Both programs as ever, but the agent finds other names in /etc/hosts than this machine does.
    let bin = Scratch::new("bin")?;
    let hosts = bin.path().join("hosts");
    // Resolvers put those first that are most like our own address (RFC 6724 rules 8 and 9). At .4 somebody else answers.
    fs::write(
        &hosts,
        format!("fd77::8 {NAME}\n10.77.0.8 {NAME}\n10.77.0.4 {NAME}\n10.77.0.200 {NAME}\n10.77.0.200 other.test\n"),
    )?;
    symlink(rig::binary("trefoil")?, bin.path().join("trefoil"))?;
    let script = bin.path().join("trefoil-agent");
    let agent = rig::agent_binary()?;
    fs::write(
        &script,
        format!(
            "#!/bin/sh\nexec unshare --mount sh -c 'mount --bind {} /etc/hosts && exec {} \"$@\"' sh \"$@\"\n",
            hosts.display(),
            agent.display()
        ),
    )?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o700))?;
    let gateway = Some(SocketAddr::from(([10, 77, 0, 200], PORT)));
    let site = Site::with(Options { bin_dir: Some(bin.path().to_owned()), gateway, ..Options::default() })?;
    let _stranger = Stranger::at(site.far.run(|| Ok(TcpListener::bind(("10.77.0.4", PORT))?))?)?;

    let node = site.node("named", "2s", &[NAME])?;
    let targets = dialled(&node, 0)?;
    ensure!(
        targets.len() > 1 && targets.last() == Some(&"10.77.0.200:5684".into()),
        "no dead address was tried: {targets:?}"
    );
    ensure!(targets.contains(&"10.77.0.4:5684".into()), "the stranger was not tried: {targets:?}");
    ensure!(
        !node.agent()?.lines().iter().any(|line| line.contains("timed out")),
        "a dead address was waited for\n{}",
        node.agent()?.tail(20)
    );

    // The same address under a name that its certificate does not have.
    let mut misled = site.machine("misled", EkKind::P256, "2s", None)?;
    site.start(&mut misled, &["other.test"])?;
    let line = misled.agent()?.wait_for_line(LONG, |line| line.contains("other.test:5684: "))?;
    ensure!(line.contains("the server's certificate"), "{line}");
    Ok(())
}

#[test]
fn the_next_server_is_tried_at_once_and_stayed_with() -> Result<()> {
    need_network!();
    let site = Site::new()?;
    let servers = ["nowhere.invalid", "10.77.0.2:1", "10.77.0.3", "10.77.0.4"];
    let node = site.node("served", "2s", &servers)?;
    let agent = node.agent()?;
    ensure!(dialled(&node, 0)? == ["10.77.0.2:1", "10.77.0.3:5684"], "{:?}", dialled(&node, 0)?);
    let passed_over = agent.lines().iter().filter(|line| line.contains("trying the next server")).count();
    ensure!(passed_over == 2, "{passed_over}\n{}", agent.tail(20));

    // The server that serves goes away, address and all, and comes back while another serves.
    let from = agent.line_count();
    site.far.ip(&format!("address delete {} dev {}", FAR[1], netns::DEVICE))?;
    site.path.change(|now| now.forgotten = Forgotten::Reset);
    ensure!(site.path.forget() >= 1, "no connection");
    agent.wait_for_line_from(from, LONG, |line| line.contains("connecting to 10.77.0.4:5684"))?;
    site.judged_anew(&node)?;
    site.far.ip(&format!("address add {} dev {}", FAR[1], netns::DEVICE))?;
    site.judged_anew(&node)?;
    site.judged_anew(&node)?;
    ensure!(dialled(&node, from)? == ["10.77.0.4:5684"], "{:?}", dialled(&node, from)?);
    Ok(())
}

#[test]
fn a_connection_that_a_router_swallows_is_noticed_at_both_ends_and_replaced() -> Result<()> {
    need_network!();
    let site = Site::new()?;
    let node = site.node("swallowed", "2s", &["10.77.0.2"])?;
    let agent = node.agent()?;
    let from = agent.line_count();
    ensure!(site.path.forget() == 1, "not one connection");
    agent.wait_for_line_from(from, LONG, |line| line.contains("asked for a sign of life"))?;
    agent.wait_for_line_from(from, LONG, |line| line.contains("gives no sign of life"))?;
    site.judged_anew(&node)?;
    // The new connection ends the old one, of which the control plane had heard nothing.
    site.fleet.rig.server()?.wait_for_line(LONG, |line| line.contains("agent left"))?;
    Ok(())
}

#[test]
fn a_connection_that_a_router_resets_is_replaced() -> Result<()> {
    need_network!();
    let site = Site::new()?;
    let node = site.node("reset", "2s", &["10.77.0.2"])?;
    let agent = node.agent()?;
    for _ in 0..2 {
        let from = agent.line_count();
        site.path.change(|now| now.forgotten = Forgotten::Reset);
        ensure!(site.path.forget() == 1, "not one connection");
        agent.wait_for_line_from(from, LONG, |line| line.contains("connecting to"))?;
        site.judged_anew(&node)?;
    }
    Ok(())
}

#[test]
fn a_gateway_whose_machine_vanished_is_found_again_when_it_is_back() -> Result<()> {
    need_network!();
    let site = Site::new()?;
    let node = site.node("left", "2s", &["10.77.0.2"])?;
    let from = node.agent()?.line_count();
    // What a killed program's kernel says at its end is not heard either.
    site.path.change(|now| now.dead = true);
    site.far.run(|| {
        site.fleet.rig.kill_server()?;
        thread::sleep(Duration::from_secs(2));
        site.fleet.rig.start_server()
    })?;
    node.agent()?.wait_for_line_from(from, LONG, |line| line.contains("asked for a sign of life"))?;
    site.path.change(|now| now.dead = false);
    site.judged_anew(&node)?;
    Ok(())
}

#[test]
fn an_agent_that_vanished_goes_stale_and_is_good_again_while_its_old_connection_still_hangs() -> Result<()> {
    need_network!();
    let site = Site::new()?;
    let mut node = site.node("vanished", "2s", &["10.77.0.2"])?;
    ensure!(site.path.forget() == 1, "not one connection");
    node.agent()?.kill()?;
    site.far.run(|| site.fleet.rig.wait_trust("vanished", "stale", LONG))?;
    site.near.run(|| {
        node.tpm.reset()?;
        node.tpm.play_firmware()
    })?;
    let before_ms = site.far.run(|| site.fleet.delivered_ms("vanished"))?;
    let left = |line: &str| line.contains("agent left");
    ensure!(!site.fleet.rig.server()?.lines().iter().any(|line| left(line)), "the old connection had ended");
    site.start(&mut node, &["10.77.0.2"])?;
    site.far.run(|| {
        site.fleet.rig.wait_node("vanished", "another delivery", LONG, |node| {
            node["delivered"]["at_ms"].as_i64().is_some_and(|at_ms| at_ms > before_ms)
        })
    })?;
    site.judged_anew(&node)?;
    site.fleet.rig.server()?.wait_for_line(LONG, left)?;
    Ok(())
}

#[test]
fn the_control_plane_lets_go_of_an_agent_that_vanished_or_hangs() -> Result<()> {
    need_network!();
    let site = Site::new()?;
    let vanished = site.node("vanished", "1s", &["10.77.0.2"])?;
    let server = site.fleet.rig.server()?;
    let left = |node: &Node| -> Result<String> {
        let id = site.far.run(|| site.fleet.rig.node(&node.name))?["node_id"].as_str().unwrap_or_default().to_owned();
        let line = server.wait_for_line(LONG, |line| line.contains("agent left") && line.contains(&id))?;
        ensure!(!id.is_empty(), "no node id");
        Ok(line)
    };
    // Nothing acknowledges what is sent to it.
    ensure!(site.path.forget() == 1, "not one connection");
    vanished.agent()?.kill()?;
    // A worker that hangs has a kernel that acknowledges all of it.
    let hanging = site.node("hanging", "1s", &["10.77.0.2"])?;
    let worker = hanging.agent()?.worker_pid().context("no worker")?;
    sys::signal(worker, sys::SIGSTOP)?;
    left(&vanished)?;
    left(&hanging)?;
    sys::signal(worker, sys::SIGCONT)?;
    site.judged_anew(&hanging)?;
    Ok(())
}

#[test]
fn a_third_of_all_packets_lost_on_a_path_of_600_ms_is_survived_from_enrolment_to_attestation() -> Result<()> {
    need_network!();
    let site = Site::new()?;
    let mut node = site.machine("far-away", EkKind::P256, "5s", None)?;
    site.path.change(|now| (now.delay, now.loss_percent) = (Duration::from_millis(300), 30));
    let began = Instant::now();
    site.start(&mut node, &["10.77.0.2"])?;
    site.is_delivered(&node)?;
    let delivered = began.elapsed();
    site.judged_anew(&node)?;
    let (carried, lost) = site.path.counts();
    println!(
        "delivered after {:.1} s in {} connections; {carried} packets carried, {lost} lost",
        delivered.as_secs_f64(),
        dialled(&node, 0)?.len()
    );
    for line in node.agent()?.lines().iter().filter(|line| line.contains("trying again")) {
        println!("{line}");
    }
    ensure!(lost * 8 > carried + lost, "only {lost} of {} packets were lost", carried + lost);
    Ok(())
}

#[test]
fn no_packet_is_too_long_for_a_path_of_1280_bytes() -> Result<()> {
    need_network!();
    let site = Site::new()?;
    // An RSA certificate makes the longest enrolment; a payload of some chunks the longest records, both ways.
    let big: Vec<u8> = (0..200_000u32).map(|index| (index % 251) as u8).collect();
    let files: [(&str, &[u8]); 1] = [("big.bin", &big)];
    let payload = site.fleet.rig.payload("big", &files)?;
    let servers = if netns::has_ipv6() { vec!["[fd77::2]:5684", "10.77.0.2"] } else { vec!["10.77.0.2"] };
    for (index, server) in servers.into_iter().enumerate() {
        let name = format!("narrow-{index}");
        let mut node = site.machine(&name, EkKind::P384AndRsa, "1s", Some(&payload))?;
        site.path.change(|now| now.longest = 1280);
        site.start(&mut node, &[server])?;
        site.far.run(|| site.fleet.rig.wait_phase(&name, "delivered", LONG))?;
        has_files(node.agent()?, &files)?;
        site.judged_anew(&node)?;
    }
    let (carried, lost) = site.path.counts();
    ensure!(carried > 300 && lost == 0, "{lost} packets of {carried} were too long");
    ensure!(site.path.longest_carried() > 1000, "nothing was long: {}", site.path.longest_carried());
    Ok(())
}

#[test]
fn an_agent_behind_address_translation_survives_another_outer_address() -> Result<()> {
    need_network!();
    let site = Site::new()?;
    // The near end becomes the router; the machine is behind it.
    let router = &site.near;
    let behind = Namespace::new()?;
    behind.cable("lan0", router)?;
    behind.ip("address add 192.168.77.2/24 dev lan0")?;
    behind.ip("route add default via 192.168.77.1")?;
    router.ip("address add 192.168.77.1/24 dev lan0")?;
    router.route_packets()?;
    let masquerade = format!(
        "add table ip nat; add chain ip nat post {{ type nat hook postrouting priority 100; }}; \
         add rule ip nat post oifname {} masquerade",
        netns::DEVICE
    );
    if let Err(why) = router.nft(&masquerade) {
        println!("skipped: this kernel has no address translation: {why:#}");
        return Ok(());
    }
    let mut node = behind.run(|| {
        let tpm = site.fleet.tpm(EkKind::P256)?;
        let id = site.fleet.rig.node_id(&tpm)?;
        let add = NodeAdd::id(id).policy(&site.fleet.policy).payload(&site.fleet.payload);
        site.far.run(|| site.fleet.rig.node_add("behind", &add.arg("--interval").arg("8s")))?;
        Ok(Node { name: "behind".into(), agent: None, tpm })
    })?;
    let config = site.far.run(|| site.fleet.rig.agent_config("behind"))?;
    let text = fs::read_to_string(&config)?;
    let lines = text.lines().map(|line| if line.starts_with("server") { "server = 10.77.0.2" } else { line });
    fs::write(&config, lines.collect::<Vec<_>>().join("\n"))?;
    node.agent = Some(behind.run(|| site.fleet.rig.agent_with(&node.tpm, "behind", &config, &[]))?);
    site.is_delivered(&node)?;
    site.judged_anew(&node)?; // the rhythm is known

    let from = node.agent()?.line_count();
    router.ip(&format!("address add 10.77.0.7/24 dev {}", netns::DEVICE))?;
    router.ip(&format!("address delete 10.77.0.1/24 dev {}", netns::DEVICE))?;
    router.ip(&format!("address add 10.77.0.7/24 dev {}", netns::DEVICE)).or_else(|why| {
        // Gone with the first address, or still there: as the system's settings have it.
        if format!("{why:#}").contains("exists") || format!("{why:#}").contains("already") { Ok(()) } else { Err(why) }
    })?;
    let trusts = site.far.run(|| {
        let mut trusts = Vec::new();
        let deadline = Instant::now() + LONG;
        while dialled(&node, from)?.is_empty() {
            ensure!(Instant::now() < deadline, "the agent never noticed\n{}", node.agent()?.tail(20));
            let trust = site.fleet.rig.node("behind")?["trust"].as_str().unwrap_or_default().to_owned();
            if trusts.last() != Some(&trust) {
                trusts.push(trust);
            }
            thread::sleep(Duration::from_millis(100));
        }
        Ok(trusts)
    })?;
    site.judged_anew(&node)?;
    println!("trust meanwhile: {}", trusts.join(", then "));
    ensure!(!trusts.iter().any(|trust| trust == "failed"), "an address is no failure: {trusts:?}");
    Ok(())
}

#[test]
fn a_node_that_is_refused_does_not_hammer() -> Result<()> {
    need_network!();
    let site = Site::new()?;
    let mut node = site.machine("unwanted", EkKind::P256, "2s", None)?;
    let config = site.far.run(|| site.fleet.rig.agent_config("unwanted"))?;
    site.far.run(|| site.fleet.rig.trefoil(&["node", "remove", "unwanted"]))?;
    let text = fs::read_to_string(&config)?.replace("[::]:5684", "10.77.0.2").replace("0.0.0.0:5684", "10.77.0.2");
    fs::write(&config, text)?;
    node.agent = Some(site.near.run(|| site.fleet.rig.agent_with(&node.tpm, "unwanted", &config, &[]))?);
    node.agent()?.wait_for_line(LONG, |line| line.contains("was refused"))?;
    thread::sleep(Duration::from_secs(10));
    let tries = dialled(&node, 0)?.len();
    // Waits are drawn from 0 to 0.5, 1, 2, 4, 8, … seconds: a dozen of them do not fit ten.
    ensure!((1..=14).contains(&tries), "{tries} connections in ten seconds");
    Ok(())
}
