//! Networks as bad as those that agents live on, each scenario's its own: network namespaces, and between two of them a
//! path that delays, loses, forgets and swallows what the scenario says.
//!
//! A path is two tun devices and two threads of this process that carry IP packets from one to the other: kernels that
//! lack `netem` have them too. A namespace has no name and is held by a descriptor alone, so that none is left behind.
//! A thread [enters](Namespace::enter) one, and what it starts or connects from there on is in it.

use std::collections::{HashMap, VecDeque};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::{apt, spawn, sys};

/// The name of a path's device at both ends.
pub const DEVICE: &str = "path0";
/// How soon a thread sees that its path has ended.
const LOOK_AROUND: Duration = Duration::from_millis(50);
/// Longer than any packet of a device with an MTU of 1,500 bytes.
const PACKET_ROOM: usize = 2048;

/// Why there can be no namespaces and paths here, as the line that a scenario prints.
pub fn missing() -> Option<String> {
    if let Some(missing) = crate::rig::missing(&[apt::Tool::Iproute2, apt::Tool::Nftables]) {
        return Some(missing);
    }
    let probe = || -> Result<()> {
        let namespace = Namespace::new()?;
        namespace.run(|| sys::open_tun(DEVICE).context("a tun device")).map(drop)
    };
    probe().err().map(|why| format!("skipped: no network namespaces and tun devices can be had here: {why:#}"))
}

/// Whether the kernel has IPv6.
pub fn has_ipv6() -> bool {
    Path::new("/proc/net/if_inet6").exists()
}

/// A network namespace, with its loopback up. It ends with this value and the last process in it.
#[derive(Debug)]
pub struct Namespace(File);

impl Namespace {
    /// Makes one.
    ///
    /// # Errors
    /// When the system does not let us: it takes root.
    pub fn new() -> Result<Self> {
        // Made by now, it is in none of them.
        _ = spawn::spawner();
        let namespace = Self(sys::new_network().context("a network namespace")?);
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// Moves the calling thread into it until the guard is dropped.
    ///
    /// # Errors
    /// When the system does not let us.
    pub fn enter(&self) -> Result<Inside> {
        let before = sys::own_network().context("finding the network namespace")?;
        sys::enter_network(&self.0).context("entering a network namespace")?;
        Ok(Inside(before))
    }

    /// Does something inside.
    ///
    /// # Errors
    /// As [`Namespace::enter`], and those of `work`.
    pub fn run<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let _inside = self.enter()?;
        work()
    }

    /// Runs `ip` with these arguments, separated by spaces.
    ///
    /// # Errors
    /// When it fails; what it printed is in the message.
    pub fn ip(&self, arguments: &str) -> Result<()> {
        self.run(|| spawn::run(Command::new("ip").args(arguments.split(' '))).map(drop))
    }

    /// Runs `nft` with one or more commands, separated by semicolons.
    ///
    /// # Errors
    /// As [`Namespace::ip`].
    pub fn nft(&self, commands: &str) -> Result<()> {
        self.run(|| spawn::run(Command::new("nft").arg(commands)).map(drop))
    }

    /// Joins it to another by a cable, with a device of this name at each end.
    ///
    /// # Errors
    /// As [`Namespace::ip`].
    pub fn cable(&self, device: &str, other: &Self) -> Result<()> {
        let there = format!("/proc/{}/fd/{}", std::process::id(), other.0.as_raw_fd());
        self.ip(&format!("link add {device} type veth peer name {device} netns {there}"))?;
        self.ip(&format!("link set {device} up"))?;
        other.ip(&format!("link set {device} up"))
    }

    /// Passes on IPv4 packets that are not for it.
    ///
    /// # Errors
    /// When the setting cannot be written.
    pub fn route_packets(&self) -> Result<()> {
        self.run(|| fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("ip_forward"))
    }
}

/// Moves the thread back when it is dropped.
#[derive(Debug)]
#[must_use = "the thread leaves at once"]
pub struct Inside(File);

impl Drop for Inside {
    fn drop(&mut self) {
        if let Err(why) = sys::enter_network(&self.0) {
            // What follows on this thread would be in the wrong network.
            eprintln!("a network namespace cannot be left: {why}");
            std::process::abort();
        }
    }
}

/// What becomes of the packets of a connection that the path has forgotten.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Forgotten {
    /// They vanish.
    Swallowed,
    /// Their sender gets a reset; over IPv6 they vanish.
    Reset,
}

/// What a path does to packets.
#[derive(Clone, Copy, Debug)]
pub struct Conditions {
    /// How long a packet is on its way.
    pub delay: Duration,
    /// How many of a hundred are lost, drawn in the same order in every run.
    pub loss_percent: u32,
    /// Longer ones vanish, and nobody is told.
    pub longest: usize,
    /// All vanish.
    pub dead: bool,
    /// A TCP connection that carries nothing for so long is forgotten.
    pub forgets_after: Option<Duration>,
    /// What comes of forgotten ones.
    pub forgotten: Forgotten,
}

impl Default for Conditions {
    fn default() -> Self {
        Self {
            delay: Duration::ZERO,
            loss_percent: 0,
            longest: PACKET_ROOM,
            dead: false,
            forgets_after: None,
            forgotten: Forgotten::Swallowed,
        }
    }
}

/// A path between two namespaces, with the device [`DEVICE`] at each end. Dropping it ends it.
#[derive(Debug)]
pub struct NetPath {
    state: Arc<Mutex<State>>,
    ends: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl NetPath {
    /// Lays a path whose ends have these addresses (`ADDRESS/LENGTH`; IPv6 ones are left out where there is no IPv6).
    ///
    /// # Errors
    /// When the devices cannot be had.
    pub fn lay(near: (&Namespace, &[&str]), far: (&Namespace, &[&str])) -> Result<Self> {
        let end = |(namespace, addresses): (&Namespace, &[&str])| -> Result<Arc<File>> {
            let file = namespace.run(|| sys::open_tun(DEVICE).context("a tun device"))?;
            for address in addresses {
                match address.contains(':') {
                    true if !has_ipv6() => {}
                    true => namespace.ip(&format!("address add {address} dev {DEVICE} nodad"))?,
                    false => namespace.ip(&format!("address add {address} dev {DEVICE}"))?,
                }
            }
            namespace.ip(&format!("link set {DEVICE} up"))?;
            Ok(Arc::new(file))
        };
        let (near, far) = (end(near)?, end(far)?);
        let state = Arc::new(Mutex::new(State::default()));
        let ends = Arc::new(AtomicBool::new(false));
        let carry = |from: &Arc<File>, to: &Arc<File>, side: Side| {
            let carrier = Carrier {
                from: Arc::clone(from),
                to: Arc::clone(to),
                side,
                state: Arc::clone(&state),
                dice: Dice(0x9e37_79b9_7f4a_7c15 + side as u64),
            };
            let ends = Arc::clone(&ends);
            thread::spawn(move || carrier.run(&ends))
        };
        let threads = vec![carry(&near, &far, Side::Near), carry(&far, &near, Side::Far)];
        Ok(Self { state, ends, threads })
    }

    /// Changes what it does to packets.
    pub fn change(&self, change: impl FnOnce(&mut Conditions)) {
        change(&mut lock(&self.state).conditions);
    }

    /// Forgets every TCP connection there is now; new ones can be made. How many there were.
    pub fn forget(&self) -> usize {
        let mut state = lock(&self.state);
        let mut forgotten = 0;
        for flow in state.flows.values_mut().filter(|flow| !flow.forgotten) {
            flow.forgotten = true;
            forgotten += 1;
        }
        forgotten
    }

    /// Packets that were carried, and those that were not.
    pub fn counts(&self) -> (u64, u64) {
        let state = lock(&self.state);
        (state.carried, state.lost)
    }

    /// The longest packet that was carried, in bytes.
    pub fn longest_carried(&self) -> usize {
        lock(&self.state).longest_carried
    }
}

impl Drop for NetPath {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                eprintln!("a thread that carried packets had panicked");
            }
        }
    }
}

/// The end at which a packet enters.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Side {
    Near = 1,
    Far = 2,
}

/// Addresses and ports of a TCP connection, the near end's first.
type FlowKey = (Vec<u8>, u16, Vec<u8>, u16);

#[derive(Debug)]
struct Flow {
    used: Instant,
    forgotten: bool,
}

#[derive(Debug, Default)]
struct State {
    conditions: Conditions,
    flows: HashMap<FlowKey, Flow>,
    carried: u64,
    lost: u64,
    longest_carried: usize,
}

/// What becomes of a packet.
enum Fate {
    Carried(Duration),
    Lost,
    Reset,
}

impl State {
    fn fate(&mut self, packet: &[u8], side: Side, dice: &mut Dice) -> Fate {
        let conditions = self.conditions;
        let now = Instant::now();
        let mut fate = Fate::Carried(conditions.delay);
        if let Some(tcp) = Tcp::of(packet) {
            let near = (tcp.from.to_vec(), tcp.from_port);
            let far = (tcp.to.to_vec(), tcp.to_port);
            let (near, far) = if side == Side::Near { (near, far) } else { (far, near) };
            let flow = self.flows.entry((near.0, near.1, far.0, far.1)).or_insert(Flow { used: now, forgotten: false });
            let idle = now.duration_since(flow.used);
            if tcp.is_first_syn() {
                flow.forgotten = false;
            } else if conditions.forgets_after.is_some_and(|limit| idle >= limit) {
                flow.forgotten = true;
            }
            flow.used = now;
            if flow.forgotten {
                fate = if conditions.forgotten == Forgotten::Reset { Fate::Reset } else { Fate::Lost };
            }
        }
        if conditions.dead || packet.len() > conditions.longest || dice.percent() < conditions.loss_percent {
            fate = Fate::Lost;
        }
        if matches!(fate, Fate::Carried(_)) {
            self.carried += 1;
            self.longest_carried = self.longest_carried.max(packet.len());
        } else {
            self.lost += 1;
        }
        fate
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Carries packets in one direction.
struct Carrier {
    from: Arc<File>,
    to: Arc<File>,
    side: Side,
    state: Arc<Mutex<State>>,
    dice: Dice,
}

impl Carrier {
    fn run(mut self, ends: &AtomicBool) {
        let mut underway: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
        let mut buf = vec![0; PACKET_ROOM];
        while !ends.load(Ordering::SeqCst) {
            let due = underway.front().map(|(due, _)| due.saturating_duration_since(Instant::now()));
            let readable = sys::wait_readable(&self.from, due.unwrap_or(LOOK_AROUND).min(LOOK_AROUND));
            // A device that is gone ends with its namespace, and this thread with the path.
            if readable.is_ok_and(|readable| readable)
                && let Ok(len) = (&*self.from).read(&mut buf)
                && let Some(packet) = buf.get(..len)
            {
                let fate = lock(&self.state).fate(packet, self.side, &mut self.dice);
                match fate {
                    Fate::Carried(delay) => underway.push_back((Instant::now() + delay, packet.to_vec())),
                    Fate::Reset => {
                        if let Some(reset) = reset_for(packet) {
                            _ = (&*self.from).write(&reset); // one that is not taken is lost, as packets are
                        }
                    }
                    Fate::Lost => {}
                }
            }
            while underway.front().is_some_and(|(due, _)| *due <= Instant::now()) {
                if let Some((_, packet)) = underway.pop_front() {
                    _ = (&*self.to).write(&packet); // as above
                }
            }
        }
    }
}

/// Numbers that look random and are the same in every run (xorshift64*).
struct Dice(u64);

impl Dice {
    fn percent(&mut self) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as u32 % 100
    }
}

/// What is read of a TCP packet.
struct Tcp<'p> {
    from: &'p [u8],
    to: &'p [u8],
    from_port: u16,
    to_port: u16,
    acknowledged: [u8; 4],
    flags: u8,
}

const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;
const TCP: u8 = 6;

impl<'p> Tcp<'p> {
    fn of(packet: &'p [u8]) -> Option<Self> {
        let (from, to, segment) = match packet.first()? >> 4 {
            4 if packet.get(9) == Some(&TCP) => {
                let header = usize::from(packet.first()? & 15) * 4;
                (packet.get(12..16)?, packet.get(16..20)?, packet.get(header..)?)
            }
            6 if packet.get(6) == Some(&TCP) => (packet.get(8..24)?, packet.get(24..40)?, packet.get(40..)?),
            _ => return None,
        };
        let [a, b, c, d] = *segment.first_chunk()?;
        Some(Self {
            from,
            to,
            from_port: u16::from_be_bytes([a, b]),
            to_port: u16::from_be_bytes([c, d]),
            acknowledged: *segment.get(8..)?.first_chunk()?,
            flags: *segment.get(13)?,
        })
    }

    fn is_first_syn(&self) -> bool {
        self.flags & (SYN | ACK) == SYN
    }
}

/// The reset that a middlebox answers an IPv4 packet with (RFC 9293 §3.5.2): as if it came from the other end.
fn reset_for(packet: &[u8]) -> Option<Vec<u8>> {
    let tcp = Tcp::of(packet).filter(|tcp| tcp.from.len() == 4 && tcp.flags & (ACK | RST) == ACK)?;
    let mut segment = Vec::with_capacity(20);
    segment.extend_from_slice(&tcp.to_port.to_be_bytes());
    segment.extend_from_slice(&tcp.from_port.to_be_bytes());
    segment.extend_from_slice(&tcp.acknowledged);
    segment.extend_from_slice(&[0, 0, 0, 0, 5 << 4, RST, 0, 0, 0, 0, 0, 0]);
    let pseudo = [tcp.to, tcp.from, &[0, TCP, 0, 20]].concat();
    put_checksum(&mut segment, 16, &pseudo);
    let mut reset = vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, TCP, 0, 0];
    reset.extend_from_slice(tcp.to);
    reset.extend_from_slice(tcp.from);
    put_checksum(&mut reset, 10, &[]);
    reset.extend_from_slice(&segment);
    Some(reset)
}

/// Writes the Internet checksum (RFC 1071) of `before` and `bytes`, both of an even length, into `bytes`.
fn put_checksum(bytes: &mut [u8], at: usize, before: &[u8]) {
    let words = before.chunks_exact(2).chain(bytes.chunks_exact(2));
    let mut sum: u32 = words.map(|word| word.iter().fold(0, |value, byte| value << 8 | u32::from(*byte))).sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    for (to, from) in bytes.iter_mut().skip(at).zip((!(sum as u16)).to_be_bytes()) {
        *to = from;
    }
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener, TcpStream};

    use super::*;

    const NEAR: &str = "10.77.0.1/24";
    const FAR: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 77, 0, 2)), 7);
    const SOON: Duration = Duration::from_secs(20);

    /// Two namespaces, a path between them, and a listener at its far end.
    fn network() -> Option<(Namespace, NetPath, TcpListener)> {
        if let Some(why) = missing() {
            println!("{why}");
            return None;
        }
        let (near, far) = (Namespace::new().unwrap(), Namespace::new().unwrap());
        let path = NetPath::lay((&near, &[NEAR]), (&far, &["10.77.0.2/24"])).unwrap();
        let listener = far.run(|| Ok(TcpListener::bind(FAR)?)).unwrap();
        Some((near, path, listener))
    }

    fn connect(near: &Namespace, listener: &TcpListener) -> (TcpStream, TcpStream) {
        let here = near.run(|| Ok(TcpStream::connect_timeout(&FAR, SOON)?)).unwrap();
        let (there, _) = listener.accept().unwrap();
        for end in [&here, &there] {
            end.set_read_timeout(Some(SOON)).unwrap();
        }
        (here, there)
    }

    fn echo(here: &mut TcpStream, there: &mut TcpStream) {
        let mut byte = [0];
        here.write_all(b"x").unwrap();
        there.read_exact(&mut byte).unwrap();
        there.write_all(&byte).unwrap();
        here.read_exact(&mut byte).unwrap();
    }

    #[test]
    fn a_path_carries_and_is_the_only_way() {
        let Some((near, path, listener)) = network() else { return };
        let (mut here, mut there) = connect(&near, &listener);
        echo(&mut here, &mut there);
        assert!(path.counts().0 >= 5, "{:?}", path.counts());
        // Some machines answer for every address: what counts is that it is not this one that answers.
        _ = TcpStream::connect_timeout(&FAR, Duration::from_millis(200));
        listener.set_nonblocking(true).unwrap();
        assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "reached from outside");
    }

    #[test]
    fn a_path_delays_both_ways() {
        let Some((near, path, listener)) = network() else { return };
        path.change(|now| now.delay = Duration::from_millis(100));
        let began = Instant::now();
        let (mut here, mut there) = connect(&near, &listener);
        echo(&mut here, &mut there);
        assert!(began.elapsed() >= Duration::from_millis(400), "{:?}", began.elapsed());
    }

    #[test]
    fn a_path_loses_its_share() {
        let mut dice = Dice(1);
        let lost = (0..10_000).filter(|_| dice.percent() < 30).count();
        assert!((2_800..3_200).contains(&lost), "{lost}");
    }

    #[test]
    fn long_packets_vanish_and_nobody_is_told() {
        let Some((near, path, listener)) = network() else { return };
        let (mut here, mut there) = connect(&near, &listener);
        path.change(|now| now.longest = 1000);
        here.write_all(&[0; 1200]).unwrap();
        there.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
        assert!(there.read(&mut [0; 2000]).is_err());
        assert!(path.counts().1 >= 1);
    }

    #[test]
    fn a_forgotten_connection_is_swallowed_or_reset_and_a_new_one_is_not() {
        let Some((near, path, listener)) = network() else { return };
        let (mut here, mut there) = connect(&near, &listener);
        echo(&mut here, &mut there);
        assert_eq!(path.forget(), 1);
        here.write_all(b"x").unwrap();
        there.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        assert!(there.read(&mut [0]).is_err(), "it was carried");
        path.change(|now| now.forgotten = Forgotten::Reset);
        // Sent again by TCP itself, and answered.
        assert_eq!(here.read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
        let (mut here, mut there) = connect(&near, &listener);
        echo(&mut here, &mut there);
    }

    #[test]
    fn an_idle_connection_is_forgotten() {
        let Some((near, path, listener)) = network() else { return };
        path.change(|now| (now.forgets_after, now.forgotten) = (Some(Duration::from_millis(300)), Forgotten::Reset));
        let (mut here, mut there) = connect(&near, &listener);
        echo(&mut here, &mut there);
        thread::sleep(Duration::from_millis(400));
        here.write_all(b"x").unwrap();
        assert_eq!(here.read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn a_child_is_in_the_namespace_of_the_thread_that_asked_for_it() {
        let Some((near, _path, _listener)) = network() else { return };
        let mut command = Command::new("ip");
        command.args(["-oneline", "address", "show", "dev", DEVICE]);
        let program = near.run(|| spawn::Program::start(spawn::Launch::new("ip", command))).unwrap();
        program.wait_for_line(SOON, |line| line.contains(NEAR)).unwrap();
        program.wait_exit(SOON).unwrap();
    }
}
