//! `trefoil init`: makes the server's data directory and the operator's, once, and never overwrites either.
//!
//! Everything is written under temporary names first and renamed when all of it is there, the settings file last. The
//! databases are made by `trefoil serve` or `trefoil migrate`.

use std::path::{Path, PathBuf};

use protocol::crypto::{RolePrivateKey, RolePublicKey, TenantSigningKey};
use protocol::id::Role;
use rand_core::OsRng;

use crate::config::{self, Config, ConfigError};
use crate::files::{self, FileError, PUBLIC_MODE, SECRET_MODE};
use crate::operator::{self, RoleKeys};
use crate::pki::{self, Authority, PkiError};
use crate::store::tenant::{ApiRole, ApiTokenRow, TenantStore};
use crate::store::{StoreError, UnixMs};
use crate::token::ApiToken;

/// What to make, and for whom.
#[derive(Clone, Debug)]
pub struct Options {
    /// The server's directory.
    pub data_dir: PathBuf,
    /// The operator's directory.
    pub operator_dir: PathBuf,
    /// DNS names and IP addresses of the server; empty for this machine's own.
    pub names: Vec<String>,
}

/// What became of one directory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Made {
    /// It is new.
    New,
    /// It was there, complete, and nothing was changed.
    Kept,
}

/// What [`run`] did.
#[derive(Clone, Debug)]
pub struct Report {
    /// The server's directory.
    pub data: Made,
    /// The operator's directory.
    pub operator: Made,
    /// Names in the server certificate; empty if it was there already.
    pub names: Vec<String>,
}

/// Why nothing, or not everything, was made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each message says it")]
pub enum InitError {
    #[error(
        "{dir} was begun and is not complete: {missing} missing. Nothing was changed. Put back what is missing, or move the directory away and run init again"
    )]
    Incomplete { dir: PathBuf, missing: String },
    #[error(
        "{dir} was not made by init (it holds no CA key); the certificate comes from elsewhere and is renewed there"
    )]
    NoCa { dir: PathBuf },
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Pki(#[from] PkiError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Operator(#[from] operator::OperatorError),
}

/// Hash of the first API token, until `serve` has taken it into the tenant's database.
pub const FIRST_TOKEN: &str = "first-token";
/// The server CA's certificate: what clients and agents pin.
pub const SERVER_CA: &str = "server-ca.pem";
const SERVER_CA_KEY: &str = "server-ca.key";

/// What a complete data directory holds.
const DATA_FILES: [&str; 8] = [
    SERVER_CA,
    SERVER_CA_KEY,
    "server.pem",
    "server.key",
    "registrar.key",
    "verifier.key",
    "tenant.key",
    config::FILE_NAME,
];

/// Makes what is not there.
///
/// # Errors
/// [`InitError::Incomplete`] for a directory that holds a part of it; nothing is changed then.
pub fn run(options: &Options) -> Result<Report, InitError> {
    // Both are looked at before either is made.
    let data = state(&options.data_dir, &DATA_FILES)?;
    let operator = state(&options.operator_dir, &operator::FILES)?;
    let mut report = Report { data, operator, names: Vec::new() };
    if data == Made::New {
        report.names = if options.names.is_empty() { own_names() } else { options.names.clone() };
        make_data(&options.data_dir, &report.names)?;
    }
    if operator == Made::New {
        make_operator(options)?;
    }
    Ok(report)
}

/// Issues the server's certificate anew, for the same key, and puts it in place in one step.
///
/// With `names` empty it keeps the names of the settings file.
///
/// # Errors
/// [`InitError::NoCa`] where the certificate is another authority's; the old certificate stays on every error.
pub fn renew_certificate(data_dir: &Path, names: &[String]) -> Result<Vec<String>, InitError> {
    let config = Config::load(data_dir)?;
    let ca_key = files::read_secret(&data_dir.join(SERVER_CA_KEY))
        .map_err(|error| if error.is_missing() { InitError::NoCa { dir: data_dir.into() } } else { error.into() })?;
    let authority = Authority::load(&files::read_text(&data_dir.join(SERVER_CA))?, &ca_key)?;
    let names = if names.is_empty() { config.server.names.clone() } else { names.to_vec() };
    let issued = authority.issue_server(&names, Some(&files::read_secret(&config.server.key)?))?;
    let (dir, name) = split(&config.server.certificate);
    files::write_all(dir, &[(name, PUBLIC_MODE, issued.certificate.as_bytes())])?;
    Ok(names)
}

/// Takes the first API token into the tenant's database, once; `serve` calls it at its start.
///
/// # Errors
/// [`FirstTokenError`]; the hash stays where it is then.
pub async fn import_first_token(data_dir: &Path, store: &dyn TenantStore) -> Result<(), FirstTokenError> {
    let path = data_dir.join(FIRST_TOKEN);
    let text = match files::read_secret(&path) {
        Ok(text) => text,
        Err(error) if error.is_missing() => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let malformed = || FirstTokenError::Malformed(path.clone());
    let (label, hash) = text.trim().split_once(' ').ok_or_else(malformed)?;
    let hash = protocol::id::hex_array(hash).ok_or_else(malformed)?;
    if store.token(hash).await?.is_none() {
        let created_ms: UnixMs = store.now_ms().await?;
        let row = ApiTokenRow { hash, label: label.to_owned(), role: ApiRole::Admin, created_ms, expires_ms: None };
        store.add_token(&row).await?;
    }
    // Gone, not kept: a token that an admin ends must not come back at the next start.
    std::fs::remove_file(&path).map_err(|source| FileError::Io { path, source })?;
    Ok(())
}

/// Why the first token could not be taken over.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each message says it")]
pub enum FirstTokenError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{0} does not hold a label and the hash of a token")]
    Malformed(PathBuf),
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn state(dir: &Path, expected: &[&str]) -> Result<Made, InitError> {
    let missing: Vec<&str> = expected.iter().copied().filter(|name| !dir.join(name).exists()).collect();
    match missing.len() {
        0 => Ok(Made::Kept),
        n if n == expected.len() => Ok(Made::New),
        _ => Err(InitError::Incomplete { dir: dir.into(), missing: missing.join(", ") }),
    }
}

fn make_data(dir: &Path, names: &[String]) -> Result<(), InitError> {
    let ca = pki::new_ca("Trefoil server CA")?;
    let server = Authority::load(&ca.certificate, &ca.key)?.issue_server(names, None)?;
    let [registrar, verifier, tenant] =
        [Role::Registrar, Role::Verifier, Role::Tenant].map(|_| RolePrivateKey::generate(&mut OsRng).to_text());
    let settings = settings_text(names);
    files::make_dir(dir)?;
    files::write_all(
        dir,
        &[
            (SERVER_CA, PUBLIC_MODE, ca.certificate.as_bytes()),
            (SERVER_CA_KEY, SECRET_MODE, ca.key.as_bytes()),
            ("server.pem", PUBLIC_MODE, server.certificate.as_bytes()),
            ("server.key", SECRET_MODE, server.key.as_bytes()),
            ("registrar.key", SECRET_MODE, registrar.as_bytes()),
            ("verifier.key", SECRET_MODE, verifier.as_bytes()),
            ("tenant.key", SECRET_MODE, tenant.as_bytes()),
            (config::FILE_NAME, SECRET_MODE, settings.as_bytes()),
        ],
    )?;
    Ok(())
}

fn make_operator(options: &Options) -> Result<(), InitError> {
    let config = Config::load(&options.data_dir)?;
    let public = |role| -> Result<RolePublicKey, ConfigError> { Ok(config.role_key(role)?.public()) };
    let roles = RoleKeys {
        registrar: public(Role::Registrar)?,
        verifier: public(Role::Verifier)?,
        tenant: public(Role::Tenant)?,
    };
    let server_ca = files::read_text(&options.data_dir.join(SERVER_CA))?;
    let signing = TenantSigningKey::generate(&mut OsRng);
    let tenant_ca = pki::new_ca("Trefoil tenant CA")?;
    let token = ApiToken::generate(&mut OsRng);
    let url = url(&config);

    files::make_dir(&options.operator_dir)?;
    operator::write(
        &options.operator_dir,
        &operator::NewOperator {
            url: &url,
            server_ca: &server_ca,
            token: &token,
            roles: &roles,
            signing: &signing,
            tenant_ca: &tenant_ca,
        },
    )?;
    // Last: a hash without its token would let nobody in, and stay.
    let first = format!("{} {}\n", token.label(), hex::encode(token.hash()));
    files::write_all(&options.data_dir, &[(FIRST_TOKEN, SECRET_MODE, first.as_bytes())])?;
    Ok(())
}

/// Where the API is reached from this machine: by a name that its certificate has.
fn url(config: &Config) -> String {
    let ip = config.api.ip();
    let local = ip.is_loopback() || ip.is_unspecified();
    let names = &config.server.names;
    let host = if local && names.iter().any(|name| name == "localhost") {
        "localhost".to_owned()
    } else {
        names.first().cloned().unwrap_or_else(|| ip.to_string())
    };
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    format!("https://{host}:{}", config.api.port())
}

fn own_names() -> Vec<String> {
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".into(), "::1".into()];
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_lowercase();
    let usable = !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte));
    if usable && !names.contains(&host) {
        names.push(host);
    }
    names
}

fn settings_text(names: &[String]) -> String {
    let names = names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
    format!(
        "# Settings of `trefoil serve`; docs/config.md explains every key. Paths are relative to this directory.\n\
         # What is commented out shows its default.\n\
         \n\
         [server]\n\
         # Names in the server certificate; after a change: trefoil init --renew-certificate\n\
         names = [{names}]\n\
         \n\
         [gateway]\n\
         # listen = \"{gateway}\"\n\
         \n\
         [api]\n\
         # listen = \"{api}\"\n\
         \n\
         [registrar]\n\
         # db = \"sqlite:{dir}/registrar.db\"   # or postgres://user:password@host/database\n\
         # ek_roots = \"ek-roots\"              # directory of TPM manufacturers' CA certificates\n\
         \n\
         [verifier]\n\
         # db = \"sqlite:{dir}/verifier.db\"\n\
         # policy_keys = [\"policy-key.pem\"]   # use only policies signed by one of these keys\n\
         \n\
         [tenant]\n\
         # db = \"sqlite:{dir}/tenant.db\"\n\
         # ek_roots = \"ek-roots\"\n\
         # policy_keys = [\"policy-key.pem\"]\n",
        gateway = config::DEFAULT_GATEWAY,
        api = config::DEFAULT_API,
        dir = "DATA-DIR",
    )
}

fn split(path: &Path) -> (&Path, &str) {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    (dir, path.file_name().and_then(|name| name.to_str()).unwrap_or("server.pem"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn options(dir: &Path) -> Options {
        Options { data_dir: dir.join("data"), operator_dir: dir.join("operator"), names: vec!["localhost".into()] }
    }

    fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
        fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
            .collect()
    }

    #[test]
    fn it_makes_all_that_serve_and_the_operator_need() {
        let dir = tempfile::tempdir().unwrap();
        let options = options(dir.path());
        let report = run(&options).unwrap();
        assert_eq!((report.data, report.operator), (Made::New, Made::New));
        let config = Config::load(&options.data_dir).unwrap();
        config.server_identity().unwrap();
        let operator = operator::Operator::load(&options.operator_dir).unwrap();
        assert_eq!(operator.roles().verifier, config.role_key(Role::Verifier).unwrap().public());
        assert_eq!(operator.url(), "https://localhost:8443");
        let secret_is_private =
            |dir: &Path, name: &str| assert_eq!(fs::metadata(dir.join(name)).unwrap().mode() & 0o777, 0o600);
        for name in ["server-ca.key", "server.key", "registrar.key", "verifier.key", "tenant.key", "first-token"] {
            secret_is_private(&options.data_dir, name);
        }
        for name in ["token", "payload-signing.key", "tenant-ca.key"] {
            secret_is_private(&options.operator_dir, name);
        }
    }

    #[test]
    fn the_server_never_holds_the_token_itself() {
        let dir = tempfile::tempdir().unwrap();
        let options = options(dir.path());
        run(&options).unwrap();
        let token = fs::read_to_string(options.operator_dir.join("token")).unwrap();
        for (name, bytes) in contents(&options.data_dir) {
            assert!(!String::from_utf8_lossy(&bytes).contains(token.trim()), "{name}");
        }
    }

    #[test]
    fn a_second_init_changes_no_byte() {
        let dir = tempfile::tempdir().unwrap();
        let options = options(dir.path());
        run(&options).unwrap();
        let before = (contents(&options.data_dir), contents(&options.operator_dir));
        let report = run(&options).unwrap();
        assert_eq!((report.data, report.operator), (Made::Kept, Made::Kept));
        assert_eq!((contents(&options.data_dir), contents(&options.operator_dir)), before);
    }

    #[test]
    fn an_incomplete_directory_is_left_alone_and_what_is_missing_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let options = options(dir.path());
        run(&options).unwrap();
        fs::remove_file(options.data_dir.join("verifier.key")).unwrap();
        let before = contents(&options.data_dir);
        let error = run(&options).unwrap_err().to_string();
        assert!(error.contains("verifier.key"), "{error}");
        assert_eq!(contents(&options.data_dir), before);
    }

    #[test]
    fn renewing_replaces_the_certificate_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let options = options(dir.path());
        run(&options).unwrap();
        let mut before = contents(&options.data_dir);
        assert_eq!(renew_certificate(&options.data_dir, &[]).unwrap(), ["localhost"]);
        let mut after = contents(&options.data_dir);
        assert_ne!(before.remove("server.pem"), after.remove("server.pem"));
        assert_eq!(before, after);
        let bad = renew_certificate(&options.data_dir, &["no name".into()]);
        assert!(bad.is_err());
        Config::load(&options.data_dir).unwrap().server_identity().unwrap();
    }

    #[test]
    fn the_settings_file_shows_true_defaults() {
        let text = settings_text(&["localhost".into(), "::1".into()]);
        let config = Config::parse(&text, Path::new("DATA-DIR")).unwrap();
        assert_eq!(config.server.names, ["localhost", "::1"]);
        let uncommented: String = text
            .lines()
            .map(|line| line.strip_prefix("# ").filter(|l| l.contains(" = ")).unwrap_or(line))
            .map(|l| format!("{l}\n"))
            .collect();
        let explicit = Config::parse(&uncommented, Path::new("DATA-DIR")).unwrap();
        assert_eq!((explicit.gateway, explicit.api), (config.gateway, config.api));
        assert_eq!(explicit.tenant.db, config.tenant.db);
    }
}
