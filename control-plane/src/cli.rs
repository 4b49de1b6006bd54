//! The command line: a client of the REST API, and what the operator does without it: making keys and sealing payloads.
//!
//! What a person reads goes to standard output when it is the answer and to standard error when it is about the way
//! there, so that answers can be piped.

pub(crate) mod agent_config;
pub(crate) mod appraise;
pub(crate) mod client;
pub(crate) mod ek;
pub(crate) mod init;
pub(crate) mod join;
pub(crate) mod node;
pub(crate) mod output;
pub(crate) mod payload;
pub(crate) mod policy;
pub(crate) mod seal;
pub(crate) mod token;
pub(crate) mod verdict;
pub(crate) mod watch;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, bail};
use control_plane::operator::Operator;
use control_plane::token::ApiToken;
use zeroize::Zeroizing;

use client::Client;

/// Flags that every command takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Global {
    /// Address of the REST API
    #[arg(long, global = true, env = "TREFOIL_URL", value_name = "URL", help_heading = "Global options")]
    url: Option<String>,
    /// File of the CA certificate that the API's is pinned to
    #[arg(long, global = true, env = "TREFOIL_CA", value_name = "FILE", help_heading = "Global options")]
    ca: Option<PathBuf>,
    /// API token (better in TREFOIL_TOKEN or the operator's directory: other users see arguments)
    #[arg(
        long,
        global = true,
        env = "TREFOIL_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN",
        help_heading = "Global options"
    )]
    token: Option<SecretText>,
    /// The operator's directory [default: ~/.config/trefoil]
    #[arg(long, global = true, env = "TREFOIL_OPERATOR_DIR", value_name = "DIR", help_heading = "Global options")]
    operator_dir: Option<PathBuf>,
    /// Answer in JSON
    #[arg(long, global = true, help_heading = "Global options")]
    json: bool,
}

/// A secret from an argument.
#[derive(Clone)]
pub(crate) struct SecretText(Zeroizing<String>);

impl FromStr for SecretText {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(Zeroizing::new(text.to_owned())))
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText")
    }
}

/// What commands work with.
#[derive(Debug)]
pub(crate) struct Context {
    global: Global,
}

impl Context {
    pub(crate) const fn new(global: Global) -> Self {
        Self { global }
    }

    /// Whether answers are to be JSON.
    pub(crate) const fn json(&self) -> bool {
        self.global.json
    }

    /// The operator's directory.
    pub(crate) fn operator_dir(&self) -> anyhow::Result<PathBuf> {
        if let Some(dir) = &self.global.operator_dir {
            return Ok(dir.clone());
        }
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let config = set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")));
        let config = config.context("HOME is not set; name the operator's directory with --operator-dir")?;
        Ok(config.join("trefoil"))
    }

    /// The operator's directory, its settings read.
    pub(crate) fn operator(&self) -> anyhow::Result<Operator> {
        Ok(Operator::load(&self.operator_dir()?)?)
    }

    /// The API, by flags, else environment, else the operator's directory.
    pub(crate) fn client(&self) -> anyhow::Result<Client> {
        let Global { url, ca, token, .. } = &self.global;
        let operator = || self.operator().context("--url, --ca and --token do not say all that is needed");
        let url = match url {
            Some(url) => url.clone(),
            None => operator()?.url().to_owned(),
        };
        let ca = match ca {
            Some(path) => path.clone(),
            None => operator()?.server_ca(),
        };
        let token = match token {
            Some(text) => ApiToken::from_text(&text.0).context("--token is not an API token (trefoil-api-…)")?,
            None => operator()?.token()?,
        };
        Client::new(&url, &ca, &token)
    }
}

/// A time span in arguments: `500ms`, `10s`, `5m`, `24h`, `30d`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Span(pub(crate) Duration);

impl Span {
    /// Whole milliseconds.
    pub(crate) fn as_ms(self) -> i64 {
        i64::try_from(self.0.as_millis()).unwrap_or(i64::MAX)
    }
}

impl FromStr for Span {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = "a number and ms, s, m, h or d, such as 10s";
        let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or(error)?;
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| error)?;
        let unit_ms = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(error),
        };
        match number.checked_mul(unit_ms) {
            Some(ms @ 1..=3_153_600_000_000) => Ok(Self(Duration::from_millis(ms))),
            _ => Err("more than nothing and at most a hundred years"),
        }
    }
}

/// A node's name in arguments.
#[derive(Clone, Debug)]
pub(crate) struct NodeName(pub(crate) String);

impl FromStr for NodeName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let fits = text.len() <= 63
            && text.bytes().next().is_some_and(plain)
            && text.bytes().all(|byte| plain(byte) || byte == b'.' || byte == b'-');
        if fits { Ok(Self(text.to_owned())) } else { Err("1 to 63 of a-z, 0-9, dot and hyphen, not first") }
    }
}

/// Whether an error is that nobody reads our output any more.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
    })
}

/// Percent-encodes one component of a path (RFC 3986 §2.1).
pub(crate) fn component(text: &str) -> anyhow::Result<String> {
    if text.is_empty() || text == "." || text == ".." {
        bail!("`{text}` is no name or id");
    }
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    Ok(encoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_with_their_unit() {
        assert_eq!("500ms".parse::<Span>().unwrap().as_ms(), 500);
        assert_eq!("30d".parse::<Span>().unwrap().as_ms(), 2_592_000_000);
        for text in ["", "10", "s", "0s", "-1s", "1.5h", "10 s", "99999999999d", "18446744073709551616ms"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_component_cannot_leave_its_place_in_the_path() {
        assert_eq!(component("edge-1.a").unwrap(), "edge-1.a");
        assert_eq!(component("a/../b?c#d").unwrap(), "a%2F..%2Fb%3Fc%23d");
        assert!(component("..").is_err());
    }

    #[test]
    fn names_are_the_servers() {
        for text in ["a", "edge-1", "0.a-b", &"a".repeat(63)] {
            assert!(text.parse::<NodeName>().is_ok(), "{text}");
        }
        for text in ["", "-a", ".a", "A", "a b", "ä", &"a".repeat(64)] {
            assert!(text.parse::<NodeName>().is_err(), "{text}");
        }
    }
}
