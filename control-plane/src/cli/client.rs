//! The HTTPS client: the API's certificate under the pinned CA and no other, problems turned into errors.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use control_plane::error::Problem;
use control_plane::files;
use control_plane::token::ApiToken;
use protocol::limits::{MAX_BOOT_LOG_LEN, MAX_IMA_LOG_LEN};
use serde::Serialize;
use serde::de::DeserializeOwned;
use ureq::http::{Method, Request, Response, StatusCode};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};
use zeroize::Zeroizing;

/// How long one request may take; the server gives up before.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes of the longest answer: a node's evidence with the longest IMA list, in base64.
const MAX_ANSWER_LEN: u64 = (MAX_IMA_LOG_LEN as u64 + MAX_BOOT_LOG_LEN as u64) / 3 * 4 + 4 * 1024 * 1024;

/// The API refused what was asked.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}: {}", .0.title, .0.detail)]
pub(crate) struct Refused(pub(crate) Problem);

/// The API.
#[derive(Debug)]
pub(crate) struct Client {
    agent: Agent,
    url: String,
    authorization: Secret,
}

struct Secret(Zeroizing<String>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

impl Client {
    /// The API at `url`, whose certificate has to be issued by the CA in the file `ca`.
    pub(crate) fn new(url: &str, ca: &Path, token: &ApiToken) -> anyhow::Result<Self> {
        let url = url.trim_end_matches('/');
        if !url.starts_with("https://") {
            return Err(anyhow!("`{url}` does not begin with https://"));
        }
        let pem = files::read(ca)?;
        let roots: Vec<Certificate<'static>> = parse_pem(&pem)
            .filter_map(|item| match item {
                Ok(PemItem::Certificate(certificate)) => Some(certificate),
                _ => None,
            })
            .collect();
        if roots.is_empty() {
            return Err(anyhow!("{} holds no certificate in PEM", ca.display()));
        }
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::Specific(Arc::new(roots)))
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let agent = Agent::config_builder()
            .tls_config(tls)
            .https_only(true)
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .no_delay(true)
            .timeout_global(Some(TIMEOUT))
            .user_agent(concat!("trefoil/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        let mut authorization = Zeroizing::new(String::with_capacity(128));
        authorization.push_str("Bearer ");
        authorization.push_str(token.expose());
        Ok(Self { agent, url: url.to_owned(), authorization: Secret(authorization) })
    }

    /// GET.
    pub(crate) fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.json(self.send(Method::GET, path, None)?)
    }

    /// POST with a JSON body.
    pub(crate) fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> anyhow::Result<T> {
        let body = serde_json::to_vec(body)?;
        self.json(self.send(Method::POST, path, Some(("application/json", &body)))?)
    }

    /// POST with a JSON body; nothing comes back.
    pub(crate) fn post_quietly(&self, path: &str, body: &impl Serialize) -> anyhow::Result<()> {
        let body = serde_json::to_vec(body)?;
        self.send(Method::POST, path, Some(("application/json", &body))).map(drop)
    }

    /// POST with nothing to say.
    pub(crate) fn post_empty<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.json(self.send(Method::POST, path, Some(("application/json", b"")))?)
    }

    /// POST with a body of another type.
    pub(crate) fn post_bytes<T: DeserializeOwned>(&self, path: &str, kind: &str, body: &[u8]) -> anyhow::Result<T> {
        self.json(self.send(Method::POST, path, Some((kind, body)))?)
    }

    /// PATCH with a JSON body.
    pub(crate) fn patch<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> anyhow::Result<T> {
        let body = serde_json::to_vec(body)?;
        self.json(self.send(Method::PATCH, path, Some(("application/json", &body)))?)
    }

    /// PUT of bytes; nothing comes back.
    pub(crate) fn put_bytes(&self, path: &str, body: &[u8]) -> anyhow::Result<()> {
        self.send(Method::PUT, path, Some(("application/octet-stream", body))).map(drop)
    }

    /// DELETE; nothing comes back.
    pub(crate) fn delete(&self, path: &str) -> anyhow::Result<()> {
        self.send(Method::DELETE, path, None).map(drop)
    }

    fn send(&self, method: Method, path: &str, body: Option<(&str, &[u8])>) -> anyhow::Result<Response<Body>> {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url))
            .header("authorization", self.authorization.0.as_str())
            .header("accept", "application/json");
        let sent = match body {
            Some((kind, bytes)) => self.agent.run(request.header("content-type", kind).body(bytes)?),
            None => self.agent.run(request.body(())?),
        };
        let mut response = sent.map_err(|error| self.explain(error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let text = response.body_mut().with_config().limit(MAX_ANSWER_LEN).read_to_string().unwrap_or_default();
        match serde_json::from_str::<Problem>(&text) {
            Ok(problem) => Err(Refused(problem).into()),
            Err(_) if status == StatusCode::NOT_FOUND => Err(anyhow!("{} is not a Trefoil API", self.url)),
            Err(_) => Err(anyhow!("{} answered {status}, not as a Trefoil API does", self.url)),
        }
    }

    fn json<T: DeserializeOwned>(&self, mut response: Response<Body>) -> anyhow::Result<T> {
        let text = response
            .body_mut()
            .with_config()
            .limit(MAX_ANSWER_LEN)
            .read_to_string()
            .with_context(|| format!("the answer of {} did not come whole", self.url))?;
        let text = Zeroizing::new(text);
        serde_json::from_str(&text)
            .with_context(|| format!("the answer of {} is not what this version of trefoil knows", self.url))
    }

    fn explain(&self, error: ureq::Error) -> anyhow::Error {
        let hint = match &error {
            ureq::Error::Io(io) if io.kind() == std::io::ErrorKind::ConnectionRefused => {
                "is `trefoil serve` running, and is this its address? (--url)"
            }
            ureq::Error::HostNotFound => "is this its name? (--url)",
            ureq::Error::Timeout(_) => "it did not answer in time",
            // The handshake's errors come as input errors from rustls.
            ureq::Error::Io(io) if io.kind() == std::io::ErrorKind::InvalidData => {
                "its certificate is not one of the pinned CA for this name (--ca, --url)"
            }
            ureq::Error::Rustls(_) | ureq::Error::Tls(_) => {
                "its certificate is not one of the pinned CA for this name (--ca, --url)"
            }
            _ => "the connection failed",
        };
        anyhow::Error::new(error).context(format!("cannot reach {}: {hint}", self.url))
    }
}
