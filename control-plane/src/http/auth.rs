//! Who may call what: bearer tokens (RFC 6750), looked up by their SHA-256, and a role per group of routes.
//!
//! Whoever shows unknown tokens again and again is not looked up any more for a while; a token that was known a moment
//! ago is never held up by a neighbour behind the same address.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;

use super::ApiState;
use crate::error::ApiError;
use crate::store::tenant::ApiRole;
use crate::token::ApiToken;

/// Unknown tokens from one address within [`WINDOW`] before it is not looked up any more.
const MAX_FAILURES: u32 = 20;
/// How long failures count.
const WINDOW: Duration = Duration::from_secs(60);
/// Addresses and known tokens that are remembered; when there are more, the oldest make room.
const MAX_REMEMBERED: usize = 1024;

/// The other end of the connection; put into every request by [`serve`](super::serve()).
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// The label of the token that a request came with; put into every request that was let through.
#[derive(Clone, Debug)]
pub(crate) struct Caller(pub(crate) String);

/// What is remembered of failures.
#[derive(Debug, Default)]
pub(crate) struct Gate(Mutex<Memory>);

#[derive(Debug, Default)]
struct Memory {
    failures: HashMap<IpAddr, (Instant, u32)>,
    known: HashMap<[u8; 32], Instant>,
}

impl Gate {
    /// Seconds to wait, if this address failed too often and the token is not one that was known lately.
    fn held_up(&self, address: IpAddr, hash: &[u8; 32], now: Instant) -> Option<u32> {
        let memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if memory.known.get(hash).is_some_and(|at| now.duration_since(*at) < WINDOW * 10) {
            return None;
        }
        let (began, count) = memory.failures.get(&address)?;
        let left = WINDOW.checked_sub(now.duration_since(*began))?;
        (*count >= MAX_FAILURES).then(|| u32::try_from(left.as_secs()).unwrap_or(u32::MAX).saturating_add(1))
    }

    fn failed(&self, address: IpAddr, now: Instant) {
        let mut memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        make_room(&mut memory.failures, |(began, _)| *began);
        let entry = memory.failures.entry(address).or_insert((now, 0));
        if now.duration_since(entry.0) >= WINDOW {
            *entry = (now, 0);
        }
        entry.1 = entry.1.saturating_add(1);
    }

    fn known(&self, hash: [u8; 32], now: Instant) {
        let mut memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        make_room(&mut memory.known, |at| *at);
        memory.known.insert(hash, now);
    }
}

fn make_room<K: Copy + Eq + std::hash::Hash, V>(map: &mut HashMap<K, V>, at: impl Fn(&V) -> Instant) {
    if map.len() >= MAX_REMEMBERED
        && let Some(oldest) = map.iter().min_by_key(|(_, value)| at(value)).map(|(key, _)| *key)
    {
        map.remove(&oldest);
    }
}

/// Lets a request through only with a token that is known and reaches far enough.
pub(crate) async fn require(
    State((state, needed)): State<(ApiState, ApiRole)>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let token = bearer(request.headers()).ok_or_else(ApiError::unauthorized)?;
    let hash = token.hash();
    drop(token);
    let address = request.extensions().get::<Peer>().map(|peer| peer.0.ip());
    let now = Instant::now();
    if let Some(seconds) = address.and_then(|address| state.gate.held_up(address, &hash, now)) {
        return Err(ApiError::too_many_failures(seconds));
    }
    let Some(row) = state.app.tenant.store().token(hash).await? else {
        if let Some(address) = address {
            state.gate.failed(address, now);
        }
        return Err(ApiError::unauthorized());
    };
    state.gate.known(hash, now);
    if row.role < needed {
        return Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "forbidden",
            format!("This needs a token of the role {}; yours is a {}'s.", name(needed), name(row.role)),
        ));
    }
    let changes = !matches!(*request.method(), axum::http::Method::GET | axum::http::Method::HEAD);
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    request.extensions_mut().insert(Caller(row.label.clone()));
    let response = next.run(request).await;
    if changes {
        tracing::info!(token = row.label, %method, path, status = response.status().as_u16(), "api");
    }
    Ok(response)
}

fn name(role: ApiRole) -> &'static str {
    super::model::RoleName::from(role).name()
}

fn bearer(headers: &HeaderMap) -> Option<ApiToken> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") { ApiToken::from_text(token) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[test]
    fn an_address_that_fails_too_often_waits_and_is_let_in_again() {
        let (gate, now) = (Gate::default(), Instant::now());
        for _ in 0..MAX_FAILURES {
            assert_eq!(gate.held_up(ADDRESS, &[1; 32], now), None);
            gate.failed(ADDRESS, now);
        }
        assert_eq!(gate.held_up(ADDRESS, &[1; 32], now), Some(61));
        assert_eq!(gate.held_up(IpAddr::from([10, 0, 0, 1]), &[1; 32], now), None);
        assert_eq!(gate.held_up(ADDRESS, &[1; 32], now + WINDOW), Some(1));
        assert_eq!(gate.held_up(ADDRESS, &[1; 32], now + WINDOW + Duration::from_secs(1)), None);
    }

    #[test]
    fn a_known_token_is_not_held_up_by_strangers_at_its_address() {
        let (gate, now) = (Gate::default(), Instant::now());
        gate.known([2; 32], now);
        for _ in 0..=MAX_FAILURES {
            gate.failed(ADDRESS, now);
        }
        assert_eq!(gate.held_up(ADDRESS, &[2; 32], now), None);
        assert!(gate.held_up(ADDRESS, &[3; 32], now).is_some());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (gate, now) = (Gate::default(), Instant::now());
        for n in 0..u32::try_from(MAX_REMEMBERED).unwrap() * 2 {
            gate.failed(IpAddr::V4(n.into()), now);
        }
        assert!(gate.0.lock().unwrap().failures.len() <= MAX_REMEMBERED);
    }
}
