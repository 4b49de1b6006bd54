//! Every path and method of the wire as one enum, used by both ends.

use alloc::{string::String, vec::Vec};
use core::fmt::Write as _;

use crate::id::SealingId;

/// A request method; its number is the CoAP code 0.0x (RFC 7252 §12.1.1).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Method {
    /// 0.01
    Get = 1,
    /// 0.02
    Post = 2,
}

/// Who answers a route.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Side {
    /// The control plane, asked by the agent.
    ControlPlane,
    /// The agent, asked through the gateway.
    Agent,
    /// Either.
    Both,
}

/// A route without its parameters: what diagrams, logs and metrics name.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[expect(missing_docs, reason = "DESIGN's table of requests, one variant each")]
pub enum RouteName {
    Hello,
    Enrol,
    Activate,
    Manifest,
    Payload,
    Confirm,
    Report,
    Challenge,
    LogBoot,
    LogIma,
    LogCommandLine,
    LogUserspace,
    Share,
    Revocation,
    WellKnownCore,
}

impl RouteName {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::Hello,
        Self::Enrol,
        Self::Activate,
        Self::Manifest,
        Self::Payload,
        Self::Confirm,
        Self::Report,
        Self::Challenge,
        Self::LogBoot,
        Self::LogIma,
        Self::LogCommandLine,
        Self::LogUserspace,
        Self::Share,
        Self::Revocation,
        Self::WellKnownCore,
    ];

    /// Method, path without parameters, and who answers.
    pub const fn parts(self) -> (Method, &'static [&'static str], Side) {
        match self {
            Self::Hello => (Method::Post, &["v1", "hello"], Side::ControlPlane),
            Self::Enrol => (Method::Post, &["v1", "enrol"], Side::ControlPlane),
            Self::Activate => (Method::Post, &["v1", "activate"], Side::ControlPlane),
            Self::Manifest => (Method::Get, &["v1", "manifest"], Side::ControlPlane),
            Self::Payload => (Method::Get, &["v1", "payload"], Side::ControlPlane),
            Self::Confirm => (Method::Post, &["v1", "confirm"], Side::ControlPlane),
            Self::Report => (Method::Post, &["v1", "report"], Side::ControlPlane),
            Self::Challenge => (Method::Post, &["v1", "challenge"], Side::Agent),
            Self::LogBoot => (Method::Get, &["v1", "log", "boot"], Side::Agent),
            Self::LogIma => (Method::Get, &["v1", "log", "ima"], Side::Agent),
            Self::LogCommandLine => (Method::Get, &["v1", "log", "command-line"], Side::Agent),
            Self::LogUserspace => (Method::Get, &["v1", "log", "userspace"], Side::Agent),
            Self::Share => (Method::Post, &["v1", "share"], Side::Agent),
            Self::Revocation => (Method::Post, &["v1", "revocation"], Side::Agent),
            Self::WellKnownCore => (Method::Get, &[".well-known", "core"], Side::Both),
        }
    }

    /// The short name of logs: the path without version, `log/boot` and its like included.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hello => "hello",
            Self::Enrol => "enrol",
            Self::Activate => "activate",
            Self::Manifest => "manifest",
            Self::Payload => "payload",
            Self::Confirm => "confirm",
            Self::Report => "report",
            Self::Challenge => "challenge",
            Self::LogBoot => "log/boot",
            Self::LogIma => "log/ima",
            Self::LogCommandLine => "log/command-line",
            Self::LogUserspace => "log/userspace",
            Self::Share => "share",
            Self::Revocation => "revocation",
            Self::WellKnownCore => "well-known/core",
        }
    }
}

/// A route with its parameters.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(missing_docs, reason = "see RouteName")]
pub enum Route {
    Hello,
    Enrol,
    Activate,
    Manifest(SealingId),
    Payload(SealingId),
    Confirm,
    Report,
    Challenge,
    LogBoot,
    LogIma {
        /// The first entry wanted.
        from: u64,
    },
    LogCommandLine,
    LogUserspace,
    Share,
    Revocation,
    WellKnownCore,
}

/// Why a request names no route.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[expect(missing_docs, reason = "each message says it")]
pub enum RouteError {
    #[error("no such path")]
    NotFound,
    #[error("this path takes another method")]
    MethodNotAllowed,
    #[error("the path's or query's parameter is malformed")]
    BadParameter,
}

impl Route {
    /// Finds the route of a request with CoAP code `code`, whose Uri-Path and Uri-Query options are given in order.
    ///
    /// # Errors
    /// [`RouteError`]; answered by 4.04, 4.05 and 4.00.
    pub fn parse<'a>(
        code: u8,
        path: impl Iterator<Item = &'a [u8]>,
        query: impl Iterator<Item = &'a [u8]>,
    ) -> Result<Self, RouteError> {
        let segments: heapless::Vec<&[u8], 4> = {
            let mut segments = heapless::Vec::new();
            for segment in path {
                segments.push(segment).map_err(|_| RouteError::NotFound)?;
            }
            segments
        };
        for name in RouteName::ALL {
            let (method, fixed, _) = name.parts();
            let Some((head, rest)) = segments.split_at_checked(fixed.len()) else { continue };
            if !head.iter().zip(fixed).all(|(found, fixed)| *found == fixed.as_bytes()) {
                continue;
            }
            let route = match (name, rest) {
                (RouteName::Manifest, [id]) => Self::Manifest(sealing_id(id)?),
                (RouteName::Payload, [id]) => Self::Payload(sealing_id(id)?),
                (RouteName::Manifest | RouteName::Payload, _) | (_, [_, ..]) => continue,
                (RouteName::LogIma, []) => Self::LogIma { from: from_query(query)? },
                (RouteName::Hello, []) => Self::Hello,
                (RouteName::Enrol, []) => Self::Enrol,
                (RouteName::Activate, []) => Self::Activate,
                (RouteName::Confirm, []) => Self::Confirm,
                (RouteName::Report, []) => Self::Report,
                (RouteName::Challenge, []) => Self::Challenge,
                (RouteName::LogBoot, []) => Self::LogBoot,
                (RouteName::LogCommandLine, []) => Self::LogCommandLine,
                (RouteName::LogUserspace, []) => Self::LogUserspace,
                (RouteName::Share, []) => Self::Share,
                (RouteName::Revocation, []) => Self::Revocation,
                (RouteName::WellKnownCore, []) => Self::WellKnownCore,
            };
            return if code == method as u8 { Ok(route) } else { Err(RouteError::MethodNotAllowed) };
        }
        Err(RouteError::NotFound)
    }

    /// Its name, without parameters.
    pub const fn name(&self) -> RouteName {
        match self {
            Self::Hello => RouteName::Hello,
            Self::Enrol => RouteName::Enrol,
            Self::Activate => RouteName::Activate,
            Self::Manifest(_) => RouteName::Manifest,
            Self::Payload(_) => RouteName::Payload,
            Self::Confirm => RouteName::Confirm,
            Self::Report => RouteName::Report,
            Self::Challenge => RouteName::Challenge,
            Self::LogBoot => RouteName::LogBoot,
            Self::LogIma { .. } => RouteName::LogIma,
            Self::LogCommandLine => RouteName::LogCommandLine,
            Self::LogUserspace => RouteName::LogUserspace,
            Self::Share => RouteName::Share,
            Self::Revocation => RouteName::Revocation,
            Self::WellKnownCore => RouteName::WellKnownCore,
        }
    }

    /// Method, Uri-Path segments and Uri-Query of a request for this route.
    pub fn to_parts(self) -> (Method, Vec<String>, Option<String>) {
        let (method, fixed, _) = self.name().parts();
        let mut path: Vec<String> = fixed.iter().map(|segment| String::from(*segment)).collect();
        let mut query = None;
        match self {
            Self::Manifest(id) | Self::Payload(id) => {
                let mut text = String::new();
                _ = write!(text, "{id}"); // writing to a String does not fail
                path.push(text);
            }
            Self::LogIma { from } => {
                let mut text = String::from("from=");
                _ = write!(text, "{from}");
                query = Some(text);
            }
            _ => {}
        }
        (method, path, query)
    }
}

fn sealing_id(text: &[u8]) -> Result<SealingId, RouteError> {
    core::str::from_utf8(text).ok().and_then(SealingId::from_hex).ok_or(RouteError::BadParameter)
}

fn from_query<'a>(mut query: impl Iterator<Item = &'a [u8]>) -> Result<u64, RouteError> {
    let Some(item) = query.next() else { return Ok(0) };
    core::str::from_utf8(item)
        .ok()
        .and_then(|text| text.strip_prefix("from="))
        .and_then(|number| number.parse().ok())
        .ok_or(RouteError::BadParameter)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(code: u8, path: &str, query: Option<&str>) -> Result<Route, RouteError> {
        Route::parse(code, path.split('/').map(str::as_bytes), query.into_iter().map(str::as_bytes))
    }

    #[test]
    fn every_route_parses_back_to_itself() {
        let id = SealingId([0xab; 16]);
        for route in [
            Route::Hello,
            Route::Enrol,
            Route::Activate,
            Route::Manifest(id),
            Route::Payload(id),
            Route::Confirm,
            Route::Report,
            Route::Challenge,
            Route::LogBoot,
            Route::LogIma { from: 17 },
            Route::LogCommandLine,
            Route::LogUserspace,
            Route::Share,
            Route::Revocation,
            Route::WellKnownCore,
        ] {
            let (method, path, query) = route.to_parts();
            assert_eq!(parse(method as u8, &path.join("/"), query.as_deref()), Ok(route));
        }
    }

    #[test]
    fn strange_requests_name_no_route() {
        assert_eq!(parse(2, "v1/hello/again", None), Err(RouteError::NotFound));
        assert_eq!(parse(2, "v1", None), Err(RouteError::NotFound));
        assert_eq!(parse(2, "a/b/c/d/e", None), Err(RouteError::NotFound));
        assert_eq!(parse(1, "v1/hello", None), Err(RouteError::MethodNotAllowed));
        assert_eq!(parse(1, "v1/manifest/00", None), Err(RouteError::BadParameter));
        assert_eq!(parse(1, "v1/manifest", None), Err(RouteError::NotFound));
        assert_eq!(parse(1, "v1/log/ima", Some("from=-1")), Err(RouteError::BadParameter));
    }
}
