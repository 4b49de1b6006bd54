//! TCP to one gateway, whichever of its addresses answers.
//!
//! The addresses of a name are tried in turn, families alternating, each begun a moment after the one before it and none
//! waited out: a dead first address costs that moment and no more (RFC 8305, without its parallel name queries). What the
//! connection is to survive is set here too; who stands at its other end is for [`tls`](crate::tls) to find out.

use std::{
    io,
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use crate::{log, sys};

/// One attempt at one address: five SYNs, a second apart, or three with a kernel before 6.5.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(5);
/// How long an attempt is alone before the next address is tried beside it (RFC 8305 §5 has a quarter of a second); a
/// link over a satellite answers in 600 ms, and starting a second attempt there costs a packet.
const STAGGER: Duration = Duration::from_millis(300);
/// The longest segment that fits a path of 1,280 bytes, the least that IPv6 allows, behind 40 bytes of its header and 20 of
/// TCP's. Said to the peer in the SYN, and kept to: no router has to report that a packet was too large, and one that
/// drops such packets in silence drops none of ours. A longer segment saves 2 % of a payload's packets.
const SEGMENT: u16 = 1220;
/// How long sent data may stay unacknowledged. At 600 ms and 30 % loss one sending in a hundred takes longer; on other
/// networks none does.
const UNACKNOWLEDGED_LIMIT: Duration = Duration::from_secs(60);
/// How long a write may wait for room. What is written fits the kernel's buffer unless the peer has stopped reading.
const WRITE_LIMIT: Duration = Duration::from_secs(30);

/// Connects to one of the addresses, beginning with the one that is `first` of them: counted on and on, whatever their
/// number.
///
/// # Errors
/// What the last attempt to fail had to say; `NotFound` for no address.
pub(crate) fn dial(addresses: Vec<SocketAddr>, first: usize) -> io::Result<TcpStream> {
    let stream = race(&from(first, alternate(addresses)), STAGGER, ATTEMPT_LIMIT)?;
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(WRITE_LIMIT))?;
    sys::set_perseverance(&stream, UNACKNOWLEDGED_LIMIT)?;
    Ok(stream)
}

/// The resolver's order, but with the two families taking turns, and no more than can be tried at once.
fn alternate(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_is_v4 = addresses.first().is_some_and(SocketAddr::is_ipv4);
    let (same, other): (Vec<_>, Vec<_>) = addresses.into_iter().partition(|at| at.is_ipv4() == first_is_v4);
    let (mut same, mut other) = (same.into_iter(), other.into_iter());
    let mut mixed = Vec::new();
    loop {
        let before = mixed.len();
        mixed.extend(same.next());
        mixed.extend(other.next());
        if mixed.len() == before {
            mixed.truncate(sys::MAX_WAITED);
            return mixed;
        }
    }
}

fn from(first: usize, mut addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    if let Some(first) = first.checked_rem(addresses.len()) {
        addresses.rotate_left(first);
    }
    addresses
}

struct Attempt {
    address: SocketAddr,
    stream: TcpStream,
    deadline: Instant,
}

fn race(addresses: &[SocketAddr], stagger: Duration, limit: Duration) -> io::Result<TcpStream> {
    let mut rest = addresses.iter();
    let mut running: Vec<Attempt> = Vec::new();
    let mut next_at = Instant::now();
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    loop {
        if Instant::now() >= next_at || running.is_empty() {
            match rest.next() {
                Some(&address) => {
                    log::debug!("connecting to {address}");
                    match sys::connect_start(&address, SEGMENT) {
                        Ok(stream) => {
                            let now = Instant::now();
                            running.push(Attempt { address, stream, deadline: now + limit });
                            next_at = now + stagger;
                        }
                        // No such network here, as a rule: the next one at once.
                        Err(why) => {
                            last = failed(address, why);
                            continue;
                        }
                    }
                }
                None if running.is_empty() => return Err(last),
                None => {}
            }
        }
        let until = running.iter().map(|attempt| attempt.deadline).chain((rest.len() > 0).then_some(next_at)).min();
        let left = until.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()));
        if let Some(index) = sys::wait_any(running.iter().map(|attempt| &attempt.stream), left)? {
            let Attempt { address, stream, .. } = running.remove(index);
            match stream.take_error() {
                Ok(None) => return Ok(stream),
                Ok(Some(why)) | Err(why) => last = failed(address, why),
            }
            next_at = Instant::now();
        }
        running.retain(|attempt| {
            let lives = attempt.deadline > Instant::now();
            if !lives {
                last = failed(attempt.address, io::ErrorKind::TimedOut.into());
            }
            lives
        });
    }
}

fn failed(address: SocketAddr, why: io::Error) -> io::Error {
    log::debug!("{address}: {why}");
    why
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};

    use super::*;

    const QUICK: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(20);

    fn v4(last: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, last], 1))
    }

    fn v6(last: u16) -> SocketAddr {
        SocketAddr::from((Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last), 1))
    }

    fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    /// An address where nobody listens: connections to it are reset.
    fn closed() -> SocketAddr {
        listener().1
    }

    /// A listener whose queue is full: the kernel drops what comes, as a network does that leads nowhere. The streams
    /// fill it.
    fn deaf() -> (TcpListener, Vec<TcpStream>, SocketAddr) {
        let (listener, address) = listener();
        sys::tests::shorten_backlog(&listener);
        let mut fill = Vec::new();
        while let Ok(stream) = race(&[address], QUICK, Duration::from_millis(200)) {
            fill.push(stream);
            assert!(fill.len() < 64, "the queue never filled");
        }
        (listener, fill, address)
    }

    #[test]
    fn families_take_turns_in_the_resolvers_order() {
        assert_eq!(alternate(vec![v6(1), v6(2), v6(3), v4(1), v4(2)]), [v6(1), v4(1), v6(2), v4(2), v6(3)]);
        assert_eq!(alternate(vec![v4(1), v4(2), v6(1)]), [v4(1), v6(1), v4(2)]);
        assert_eq!(alternate(vec![v4(1)]), [v4(1)]);
        assert_eq!(alternate(Vec::new()), []);
    }

    #[test]
    fn many_addresses_of_one_family_leave_room_for_the_other() {
        let mixed = alternate((1..=20).map(v6).chain([v4(1)]).collect());
        assert_eq!((mixed.len(), mixed.get(1)), (sys::MAX_WAITED, Some(&v4(1))));
    }

    #[test]
    fn every_address_comes_first_in_its_turn() {
        let ((_one, a), (_other, b)) = (listener(), listener());
        for (first, expected) in [(0, a), (1, b), (2, a), (usize::MAX, b)] {
            assert_eq!(dial(vec![a, b], first).unwrap().peer_addr().unwrap(), expected, "{first}");
        }
    }

    #[test]
    fn no_address_is_not_found() {
        assert_eq!(dial(Vec::new(), 3).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn an_address_that_resets_is_passed_over_at_once() {
        let (_listener, good) = listener();
        // The stagger is longer than any test runs: only a failure starts the next attempt.
        let stream = race(&[closed(), closed(), good], LONG * 10, LONG).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), good);
    }

    #[test]
    fn an_address_of_a_network_that_is_not_there_is_passed_over() {
        let (_listener, good) = listener();
        // Port 0 of the any address: refused without a packet.
        let stream = race(&["255.255.255.255:9".parse().unwrap(), good], LONG * 10, LONG).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), good);
    }

    #[test]
    fn a_dead_first_address_does_not_cost_its_limit() {
        let (_deaf, _fill, dead) = deaf();
        let (_listener, good) = listener();
        let began = Instant::now();
        let stream = race(&[dead, dead, good], QUICK, LONG).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), good);
        assert!(began.elapsed() < LONG, "{:?}", began.elapsed());
    }

    #[test]
    fn an_address_that_never_answers_times_out() {
        let (_deaf, _fill, dead) = deaf();
        let why = race(&[dead], QUICK, Duration::from_millis(300)).unwrap_err();
        assert_eq!(why.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn when_all_reset_that_is_the_answer() {
        let why = race(&[closed(), closed()], LONG * 10, LONG).unwrap_err();
        assert_eq!(why.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn the_other_family_is_reached_when_the_first_is_dead() {
        let Ok(listener) = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)) else {
            println!("skipped: this machine has no IPv6 on loopback");
            return;
        };
        let good = listener.local_addr().unwrap();
        let (_deaf, _fill, dead) = deaf();
        let stream = race(&alternate(vec![dead, dead, good]), QUICK, LONG).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), good);
    }

    #[test]
    fn segments_fit_a_path_of_1280_bytes_and_the_stream_blocks() {
        let (listener, good) = listener();
        let stream = dial(vec![good], 0).unwrap();
        let (peer, _) = listener.accept().unwrap();
        for end in [&stream, &peer] {
            let longest = sys::tests::segment(end);
            assert!((536..=i32::from(SEGMENT)).contains(&longest), "{longest}");
        }
        stream.set_read_timeout(Some(QUICK)).unwrap();
        let why = io::Read::read(&mut &stream, &mut [0]).unwrap_err();
        assert_eq!(why.kind(), io::ErrorKind::WouldBlock); // after its timeout, not at once
        assert!(stream.nodelay().unwrap());
    }
}
