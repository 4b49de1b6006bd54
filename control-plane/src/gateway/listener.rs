//! Accepts TLS connections and bounds what strangers may hold: a number in all, and a rate a source.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::net::sockopt;
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use super::{registry::Registry, session};
use crate::{registrar::Registrar, tenant::Tenant, verifier::Verifier};

/// Limits that an operator may have a reason to change.
#[derive(Clone, Copy, Debug)]
pub struct GatewayOptions {
    /// Connections that have not proven themselves, in all.
    pub max_unproven: usize,
    /// New connections from one source address a second, in the long run.
    pub rate_per_source: u32,
    /// New connections from one source address at once.
    pub burst_per_source: u32,
}

impl Default for GatewayOptions {
    fn default() -> Self {
        // A rack behind one NAT address that boots at once is not a flood.
        Self { max_unproven: 4096, rate_per_source: 200, burst_per_source: 2000 }
    }
}

/// What every session needs.
pub struct Gateway {
    /// Binds AKs.
    pub registrar: Arc<Registrar>,
    /// Attests.
    pub verifier: Arc<Verifier>,
    /// Delivers.
    pub tenant: Arc<Tenant>,
    /// Who is connected.
    pub registry: Arc<Registry>,
    /// SHA-256 of the certificate shown to agents.
    pub server_certificate: [u8; 32],
    options: GatewayOptions,
    unproven: Arc<Semaphore>,
    sources: Mutex<HashMap<IpAddr, Bucket>>,
    connections: AtomicU64,
}

struct Bucket {
    tokens: f64,
    at: Instant,
}

/// Time for TLS: a handshake takes two round trips, each of which may need sending three times over a bad link. A stranger
/// that uses it up holds what any unproven connection holds, a place among [`GatewayOptions::max_unproven`].
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(20);
/// How long what was sent may stay unacknowledged: an agent that vanished without a word is known by it. The kernel's own
/// patience is a quarter of an hour; 600 ms and 30 % loss need longer than this in one case of a hundred.
const UNACKNOWLEDGED_LIMIT: Duration = Duration::from_secs(60);
/// Source addresses remembered for their rate; more than that are forgotten, the fullest buckets first.
const MAX_SOURCES: usize = 16_384;

impl Gateway {
    /// A gateway in front of these roles.
    pub fn new(
        registrar: Arc<Registrar>,
        verifier: Arc<Verifier>,
        tenant: Arc<Tenant>,
        registry: Arc<Registry>,
        server_certificate: [u8; 32],
        options: GatewayOptions,
    ) -> Arc<Self> {
        Arc::new(Self {
            registrar,
            verifier,
            tenant,
            registry,
            server_certificate,
            options,
            unproven: Arc::new(Semaphore::new(options.max_unproven)),
            sources: Mutex::default(),
            connections: AtomicU64::new(0),
        })
    }

    /// Accepts agents until `shutdown` turns true; then tells each to come back, and waits for them at most 5 s.
    pub async fn run(
        self: Arc<Self>,
        listener: TcpListener,
        tls: Arc<ServerConfig>,
        mut shutdown: watch::Receiver<bool>,
    ) {
        let acceptor = TlsAcceptor::from(tls);
        let mut sessions = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = shutdown.wait_for(|shutdown| *shutdown) => break,
                Some(_) = sessions.join_next() => continue,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, most likely: waiting is what helps.
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            if !self.take_from_source(peer.ip()) {
                tracing::debug!(%peer, "too many connections from this source: dropped");
                continue;
            }
            let Ok(permit) = self.unproven.clone().try_acquire_owned() else {
                tracing::warn!(%peer, "too many unproven connections: dropped");
                continue;
            };
            sessions.spawn(self.clone().serve(acceptor.clone(), stream, peer, permit, shutdown.clone()));
        }
        drop(listener);
        let drained = async { while sessions.join_next().await.is_some() {} };
        if tokio::time::timeout(Duration::from_secs(5), drained).await.is_err() {
            tracing::warn!("some agents did not take their leave in time");
        }
    }

    async fn serve(
        self: Arc<Self>,
        acceptor: TlsAcceptor,
        stream: TcpStream,
        peer: SocketAddr,
        permit: tokio::sync::OwnedSemaphorePermit,
        shutdown: watch::Receiver<bool>,
    ) {
        let limit_ms = u32::try_from(UNACKNOWLEDGED_LIMIT.as_millis()).unwrap_or(u32::MAX);
        let prepared = stream
            .set_nodelay(true)
            .and_then(|()| Ok(sockopt::set_tcp_user_timeout(&stream, limit_ms)?))
            // Packets are few: a lost one is sent again at an even pace, not at half the pace each time.
            .and_then(|()| Ok(sockopt::set_tcp_thin_linear_timeouts(&stream, true)?));
        if let Err(error) = prepared {
            tracing::debug!(%peer, %error, "the connection's options were not set");
        }
        let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return tracing::debug!(%peer, %error, "TLS handshake failed"),
            Err(_) => return tracing::debug!(%peer, "TLS handshake took too long"),
        };
        if stream.get_ref().1.alpn_protocol() != Some(b"coap") {
            return tracing::debug!(%peer, "the peer does not speak ALPN coap");
        }
        let connection = self.connections.fetch_add(1, Ordering::Relaxed) + 1;
        session::run(self, stream, peer, connection, permit, shutdown).await;
    }

    /// A token bucket a source.
    fn take_from_source(&self, source: IpAddr) -> bool {
        let source = network_of(source);
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        let burst = f64::from(self.options.burst_per_source);
        if sources.len() >= MAX_SOURCES && !sources.contains_key(&source) {
            let rate = f64::from(self.options.rate_per_source);
            sources.retain(|_, bucket| bucket.tokens + bucket.at.elapsed().as_secs_f64() * rate < burst);
            if sources.len() >= MAX_SOURCES {
                return false;
            }
        }
        let now = Instant::now();
        let bucket = sources.entry(source).or_insert(Bucket { tokens: burst, at: now });
        let refill = now.duration_since(bucket.at).as_secs_f64() * f64::from(self.options.rate_per_source);
        bucket.tokens = (bucket.tokens + refill).min(burst);
        bucket.at = now;
        if bucket.tokens < 1.0 {
            return false;
        }
        bucket.tokens -= 1.0;
        true
    }
}

/// Whom an address belongs to: the whole /64 of an IPv6 one, of which one host may use all.
fn network_of(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64))),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_an_ipv4_address_or_an_ipv6_network() {
        let of = |text: &str| network_of(text.parse().unwrap()).to_string();
        assert_eq!(of("192.0.2.7"), "192.0.2.7");
        assert_eq!(of("::ffff:192.0.2.7"), "192.0.2.7");
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
    }
}
