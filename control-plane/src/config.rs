//! Settings of `trefoil serve`: `trefoil.toml` in the data directory, and the keys it points to.
//!
//! Every key is documented in docs/config.md. Making the files is [`init`](crate::init)'s business; what the settings
//! lead to is the server's.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use protocol::crypto::RolePrivateKey;
use protocol::id::Role;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde::Deserialize;

use crate::appraisal::policy::PolicyTrust;
use crate::appraisal::policy::dsse::{MAX_KEYS, P256Key};
use crate::files::{self, FileError};

/// Name of the settings file in the data directory.
pub const FILE_NAME: &str = "trefoil.toml";
/// Where agents are listened for unless told otherwise.
pub const DEFAULT_GATEWAY: SocketAddr = SocketAddr::new(std::net::IpAddr::V6(Ipv6Addr::UNSPECIFIED), 5684);
/// Where the API listens unless told otherwise.
pub const DEFAULT_API: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8443);
/// The data directory unless told otherwise.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/trefoil";

/// Why the settings were refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each message says it")]
pub enum ConfigError {
    #[error("{0} is not there; make it with: trefoil init --data-dir {dir}", dir = .0.parent().unwrap_or(.0).display())]
    NotInitialised(PathBuf),
    #[error("{path}: {message}")]
    Syntax { path: PathBuf, message: String },
    #[error("{key}: {problem}")]
    Value { key: &'static str, problem: String },
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{path} does not hold {what}")]
    Content { path: PathBuf, what: &'static str },
}

/// The address of a role's database. It may hold a password, so `Debug` shows only the scheme.
#[derive(Clone, Eq, PartialEq)]
pub struct DatabaseUrl(String);

impl DatabaseUrl {
    /// `sqlite:PATH` or `postgres://…`.
    ///
    /// # Errors
    /// [`ConfigError::Value`] for another scheme, naming `key` but not the address.
    pub fn new(key: &'static str, url: String) -> Result<Self, ConfigError> {
        if ["sqlite:", "postgres:", "postgresql:"].iter().any(|scheme| url.starts_with(scheme)) {
            Ok(Self(url))
        } else {
            Err(ConfigError::Value { key, problem: "begin it with sqlite: or postgres:".into() })
        }
    }

    /// The whole address, password and all.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:…", self.0.split(':').next().unwrap_or_default())
    }
}

/// The settings, defaults filled in and paths made absolute or relative to the working directory.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where everything lies that is not said otherwise.
    pub data_dir: PathBuf,
    /// The certificate that gateway and API show.
    pub server: ServerConfig,
    /// Where agents are listened for; port 0 takes a free one.
    pub gateway: SocketAddr,
    /// Where the API listens; port 0 takes a free one.
    pub api: SocketAddr,
    /// The registrar role.
    pub registrar: RoleConfig,
    /// Whether the registrar keeps nodes that nobody has admitted waiting for an operator; else they are refused.
    pub quarantine: bool,
    /// The verifier role.
    pub verifier: RoleConfig,
    /// The tenant role.
    pub tenant: RoleConfig,
}

/// The server certificate.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// DNS names and IP addresses that `init --renew-certificate` puts into it.
    pub names: Vec<String>,
    /// PEM, one certificate.
    pub certificate: PathBuf,
    /// PEM; only its owner may read it.
    pub key: PathBuf,
}

/// One role.
#[derive(Clone, Debug)]
pub struct RoleConfig {
    /// Its database.
    pub db: DatabaseUrl,
    /// The file of its private HPKE key; only its owner may read it.
    pub key: PathBuf,
    /// Directory of EK manufacturers' CA certificates (registrar and tenant); without one no certificate is trusted.
    pub ek_roots: Option<PathBuf>,
    /// PEM files of the keys of which one has to have signed a policy (verifier and tenant); without one any policy is
    /// used.
    pub policy_keys: Vec<PathBuf>,
    /// Whether nodes' IMA lists are kept with their evidence (verifier and tenant), so that policies can be learned from
    /// them and tried against them.
    pub keep_ima: bool,
}

/// What the gateway and the API show to whoever connects.
pub struct ServerIdentity {
    /// The certificate alone: the CA is pinned at the other end, and an agent takes exactly one.
    pub certificate: CertificateDer<'static>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
}

impl fmt::Debug for ServerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerIdentity")
    }
}

impl Config {
    /// Reads `trefoil.toml` in `data_dir`.
    ///
    /// # Errors
    /// [`ConfigError`], naming the file and the key.
    pub fn load(data_dir: &Path) -> Result<Self, ConfigError> {
        let path = data_dir.join(FILE_NAME);
        let text = files::read_text(&path).map_err(|error| {
            if error.is_missing() { ConfigError::NotInitialised(path.clone()) } else { error.into() }
        })?;
        Self::parse(&text, data_dir).map_err(|error| match error {
            ConfigError::Syntax { message, .. } => ConfigError::Syntax { path, message },
            other => other,
        })
    }

    /// From the text of a settings file; relative paths are relative to `data_dir`.
    ///
    /// # Errors
    /// [`ConfigError::Syntax`] without a useful path; [`ConfigError::Value`].
    pub fn parse(text: &str, data_dir: &Path) -> Result<Self, ConfigError> {
        let file: File = toml::from_str(text).map_err(|error| ConfigError::Syntax {
            path: FILE_NAME.into(),
            message: error.to_string().trim_end().to_owned(),
        })?;
        let secret_path = |given: Option<String>, default: &str, key| {
            match given {
            Some(text) => match text.strip_prefix("credential:") {
                Some(name) => credential(name).ok_or_else(|| ConfigError::Value {
                    key,
                    problem: format!("there is no credential `{name}`: CREDENTIALS_DIRECTORY is not set, or not by systemd's LoadCredential="),
                }),
                None => Ok(data_dir.join(text)),
            },
            // A credential of that name wins, so that a unit file alone can move the keys out of the data directory.
            None => Ok(credential(default).filter(|path| path.exists()).unwrap_or_else(|| data_dir.join(default))),
        }
        };
        let database = |given: Option<String>, file: &str, key| {
            DatabaseUrl::new(key, given.unwrap_or_else(|| format!("sqlite:{}", data_dir.join(file).display())))
        };
        let roots = |given: Option<PathBuf>| given.map(|path| data_dir.join(path));
        Ok(Self {
            data_dir: data_dir.into(),
            server: ServerConfig {
                names: file.server.names,
                certificate: data_dir.join(file.server.certificate.unwrap_or_else(|| "server.pem".into())),
                key: secret_path(file.server.key, "server.key", "server.key")?,
            },
            gateway: file.gateway.listen.unwrap_or(DEFAULT_GATEWAY),
            api: file.api.listen.unwrap_or(DEFAULT_API),
            registrar: RoleConfig {
                db: database(file.registrar.db, "registrar.db", "registrar.db")?,
                key: secret_path(file.registrar.key, "registrar.key", "registrar.key")?,
                ek_roots: roots(file.registrar.ek_roots),
                policy_keys: Vec::new(),
                keep_ima: false,
            },
            quarantine: file.registrar.quarantine.unwrap_or(true),
            verifier: RoleConfig {
                db: database(file.verifier.db, "verifier.db", "verifier.db")?,
                key: secret_path(file.verifier.key, "verifier.key", "verifier.key")?,
                ek_roots: None,
                policy_keys: file.verifier.policy_keys.into_iter().map(|path| data_dir.join(path)).collect(),
                keep_ima: file.verifier.keep_ima.unwrap_or(true),
            },
            tenant: RoleConfig {
                db: database(file.tenant.db, "tenant.db", "tenant.db")?,
                key: secret_path(file.tenant.key, "tenant.key", "tenant.key")?,
                ek_roots: roots(file.tenant.ek_roots),
                policy_keys: file.tenant.policy_keys.into_iter().map(|path| data_dir.join(path)).collect(),
                keep_ima: file.tenant.keep_ima.unwrap_or(true),
            },
        })
    }

    /// One role's settings.
    pub const fn role(&self, role: Role) -> &RoleConfig {
        match role {
            Role::Registrar => &self.registrar,
            Role::Verifier => &self.verifier,
            Role::Tenant => &self.tenant,
        }
    }

    /// Reads one role's private key.
    ///
    /// # Errors
    /// [`ConfigError::File`] also for a file that others may read; [`ConfigError::Content`].
    pub fn role_key(&self, role: Role) -> Result<RolePrivateKey, ConfigError> {
        let path = &self.role(role).key;
        RolePrivateKey::from_text(&files::read_secret(path)?)
            .ok_or_else(|| ConfigError::Content { path: path.clone(), what: "a role's private key (64 hex digits)" })
    }

    /// Reads the keys of which one has to have signed a policy that a role uses; without any, every policy is used.
    ///
    /// # Errors
    /// [`ConfigError::File`]; [`ConfigError::Content`] for a file without a P-256 public key in PEM, or with something
    /// else beside it; [`ConfigError::Value`] for too many.
    pub fn policy_trust(&self, role: Role) -> Result<PolicyTrust, ConfigError> {
        let mut keys = Vec::new();
        for path in &self.role(role).policy_keys {
            let more = P256Key::from_pem(&files::read(path)?).ok_or_else(|| ConfigError::Content {
                path: path.clone(),
                what: "P-256 public keys in PEM alone (BEGIN PUBLIC KEY; trefoil policy key prints the operator's)",
            })?;
            keys.extend(more);
        }
        if keys.len() > MAX_KEYS {
            return Err(ConfigError::Value { key: "policy_keys", problem: format!("more than {MAX_KEYS} keys") });
        }
        Ok(PolicyTrust::from_keys(keys))
    }

    /// Reads the server certificate and its key.
    ///
    /// # Errors
    /// As [`role_key`](Self::role_key).
    pub fn server_identity(&self) -> Result<ServerIdentity, ConfigError> {
        let content = |path: &Path, what| ConfigError::Content { path: path.into(), what };
        let path = &self.server.certificate;
        let pem = files::read(path)?;
        let mut certificates = CertificateDer::pem_slice_iter(&pem);
        let (Some(Ok(certificate)), None) = (certificates.next(), certificates.next()) else {
            return Err(content(path, "exactly one certificate in PEM"));
        };
        let path = &self.server.key;
        let key = PrivateKeyDer::from_pem_slice(files::read_secret(path)?.as_bytes())
            .map_err(|_| content(path, "a private key in PEM"))?;
        Ok(ServerIdentity { certificate, key })
    }
}

fn credential(name: &str) -> Option<PathBuf> {
    // A name, not a way out of the directory.
    let plain = !name.is_empty() && !name.starts_with('.') && !name.contains('/');
    std::env::var_os("CREDENTIALS_DIRECTORY").filter(|_| plain).map(|dir| Path::new(&dir).join(name))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct File {
    server: ServerSection,
    gateway: ListenSection,
    api: ListenSection,
    registrar: RegistrarSection,
    verifier: VerifierSection,
    tenant: TenantSection,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ServerSection {
    names: Vec<String>,
    certificate: Option<PathBuf>,
    key: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ListenSection {
    listen: Option<SocketAddr>,
}

// Never printed: `db` may hold a password.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct VerifierSection {
    db: Option<String>,
    key: Option<String>,
    policy_keys: Vec<PathBuf>,
    keep_ima: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RegistrarSection {
    db: Option<String>,
    key: Option<String>,
    ek_roots: Option<PathBuf>,
    quarantine: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct TenantSection {
    db: Option<String>,
    key: Option<String>,
    ek_roots: Option<PathBuf>,
    policy_keys: Vec<PathBuf>,
    keep_ima: Option<bool>,
}

impl fmt::Debug for RegistrarSection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RegistrarSection")
    }
}

impl fmt::Debug for VerifierSection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VerifierSection")
    }
}

impl fmt::Debug for TenantSection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TenantSection")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("/data"))
    }

    #[test]
    fn an_empty_file_gives_the_documented_defaults() {
        let config = parse("").unwrap();
        assert_eq!(config.gateway.to_string(), "[::]:5684");
        assert_eq!(config.api.to_string(), "127.0.0.1:8443");
        assert_eq!(config.registrar.db.expose(), "sqlite:/data/registrar.db");
        assert_eq!(config.verifier.key, Path::new("/data/verifier.key"));
        assert_eq!(config.server.certificate, Path::new("/data/server.pem"));
        assert!(config.tenant.ek_roots.is_none());
        assert!(config.quarantine && !parse("[registrar]\nquarantine = false").unwrap().quarantine);
    }

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        for (text, name) in [("[gateway]\nlitsen = \"[::]:1\"", "litsen"), ("[gatway]", "gatway")] {
            assert!(parse(text).unwrap_err().to_string().contains(name));
        }
        // The verifier judges no EK: roots there would be an error that nobody notices.
        assert!(parse("[verifier]\nek_roots = \"x\"").unwrap_err().to_string().contains("ek_roots"));
    }

    #[test]
    fn a_bad_value_names_its_key() {
        assert!(parse("[api]\nlisten = \"localhost\"").unwrap_err().to_string().contains("listen"));
        let error = parse("[tenant]\ndb = \"mysql://u:s3cret@h/d\"").unwrap_err().to_string();
        assert!(error.contains("tenant.db") && !error.contains("s3cret"), "{error}");
        let error = parse("[tenant]\nkey = \"credential:../x\"").unwrap_err().to_string();
        assert!(error.contains("tenant.key"), "{error}");
    }

    #[test]
    fn policy_keys_are_read_by_the_roles_that_judge_and_a_bad_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let pem = |byte: u8| {
            let key = p256::ecdsa::SigningKey::from_slice(&[byte; 32]).unwrap();
            let point: [u8; 65] = key.verifying_key().to_encoded_point(false).as_bytes().try_into().unwrap();
            crate::pki::p256_spki_pem(&point)
        };
        std::fs::write(dir.path().join("a.pem"), pem(1) + &pem(2)).unwrap();
        std::fs::write(dir.path().join("b.pem"), pem(3)).unwrap();
        std::fs::write(dir.path().join("bad.pem"), "no key").unwrap();
        let trust = |text: &str, role| Config::parse(text, dir.path()).unwrap().policy_trust(role);
        assert_eq!(trust("", Role::Tenant).unwrap(), PolicyTrust::Any);
        let both = "[tenant]\npolicy_keys = [\"a.pem\", \"b.pem\"]";
        let PolicyTrust::Signed(keys) = trust(both, Role::Tenant).unwrap() else { panic!("keys are set") };
        assert_eq!(keys.len(), 3);
        // Each role has its own.
        assert_eq!(trust(both, Role::Verifier).unwrap(), PolicyTrust::Any);
        for file in ["bad.pem", "missing.pem"] {
            let error = trust(&format!("[verifier]\npolicy_keys = [\"{file}\"]"), Role::Verifier).unwrap_err();
            assert!(error.to_string().contains(file), "{error}");
        }
        assert!(parse("[registrar]\npolicy_keys = []").unwrap_err().to_string().contains("policy_keys"));
    }

    #[test]
    fn ima_lists_are_kept_unless_the_settings_say_otherwise() {
        let config = parse("[verifier]\nkeep_ima = false").unwrap();
        assert!(!config.verifier.keep_ima && config.tenant.keep_ima);
        assert!(parse("[registrar]\nkeep_ima = true").unwrap_err().to_string().contains("keep_ima"));
    }

    #[test]
    fn debug_shows_no_password() {
        let config = parse("[registrar]\ndb = \"postgres://u:s3cret@h/d\"").unwrap();
        assert!(!format!("{config:?}").contains("s3cret"));
    }

    #[test]
    fn a_directory_without_settings_says_how_to_make_them() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Config::load(dir.path()).unwrap_err().to_string().contains("trefoil init --data-dir"));
    }
}
