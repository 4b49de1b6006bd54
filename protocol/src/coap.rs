//! CoAP over a reliable transport: what both ends of the one TLS connection speak.
//!
//! In reading order: [`frame`] turns messages into bytes and back, [`signal`] the messages about the connection itself,
//! [`exchange`] matches replies to requests in both directions, [`block`] moves bodies larger than a message. None of
//! them touches a socket, a clock or a random number. Which paths exist, and what their bodies mean, is said elsewhere.

pub mod block;
pub mod exchange;
pub mod frame;
pub mod route;
pub mod signal;

use alloc::string::String;
use core::fmt;

use coap_lite::link_format::{LINK_ATTR_CONTENT_FORMAT, LINK_ATTR_RESOURCE_TYPE, LinkFormatWrite};

pub use coap_lite::CoapOption;

use self::route::RouteName;

/// One resource as `/.well-known/core` tells it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Link<'a> {
    /// The absolute path, beginning with `/`.
    pub path: &'a str,
    /// What the resource is (`rt`); left out if empty.
    pub resource_type: &'a str,
    /// The content format of its representation (`ct`), one of [`frame::format`].
    pub content_format: Option<u16>,
}

/// Writes the body of `/.well-known/core`, to be sent as [`frame::format::LINK`].
///
/// # Errors
/// Those of `out`.
///
/// RFC 6690 §2.
pub fn write_links<'a>(links: impl IntoIterator<Item = Link<'a>>, out: &mut impl fmt::Write) -> fmt::Result {
    let mut writer = LinkFormatWrite::new(out);
    for Link { path, resource_type, content_format } in links {
        let mut link = writer.link(path);
        if !resource_type.is_empty() {
            link = link.attr_quoted(LINK_ATTR_RESOURCE_TYPE, resource_type);
        }
        if let Some(format) = content_format {
            link = link.attr_u16(LINK_ATTR_CONTENT_FORMAT, format);
        }
        link.finish()?;
    }
    writer.finish()
}

/// Writes the body of `/.well-known/core` for these routes.
///
/// # Errors
/// Those of `out`.
pub fn write_routes(routes: impl IntoIterator<Item = RouteName>, out: &mut impl fmt::Write) -> fmt::Result {
    let mut path = String::new();
    let mut writer = LinkFormatWrite::new(out);
    for route in routes {
        path.clear();
        for segment in route.parts().1 {
            path.push('/');
            path.push_str(segment);
        }
        writer.link(&path).finish()?;
    }
    writer.finish()
}

#[cfg(test)]
mod tests {
    use alloc::string::String;

    use super::*;

    #[test]
    fn links_are_written_in_link_format() {
        let mut out = String::new();
        let links = [
            Link {
                path: "/v1/hello",
                resource_type: "trefoil.hello",
                content_format: Some(frame::format::OCTET_STREAM),
            },
            Link { path: "/v1/log/boot", resource_type: "", content_format: None },
        ];
        write_links(links, &mut out).unwrap();
        assert_eq!(out, "</v1/hello>;rt=\"trefoil.hello\";ct=42,</v1/log/boot>");
    }
}
