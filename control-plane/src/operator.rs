//! The operator's directory: how to reach the API, the pinned keys of the roles, and the keys that never leave it.
//!
//! The payload-signing key and the tenant CA's key are read only by the commands that need them.

use std::path::{Path, PathBuf};

use protocol::crypto::{RolePublicKey, TenantPublicKey, TenantSigningKey};
use serde::Deserialize;

use crate::files::{self, FileError, PUBLIC_MODE, SECRET_MODE};
use crate::pki::{self, Authority, Issued, PkiError};
use crate::token::ApiToken;

/// Name of the settings file in the operator's directory.
pub const FILE_NAME: &str = "operator.toml";
/// The key that nodes pin, as PEM.
pub const TENANT_KEY: &str = "tenant-key.pem";
/// The server's CA, pinned.
pub const SERVER_CA: &str = "server-ca.pem";
const TOKEN: &str = "token";
const SIGNING_KEY: &str = "payload-signing.key";
const TENANT_CA: &str = "tenant-ca.pem";
const TENANT_CA_KEY: &str = "tenant-ca.key";
const JOINS: &str = "joins";

/// What a complete operator's directory holds.
pub(crate) const FILES: [&str; 7] = [SERVER_CA, TOKEN, SIGNING_KEY, TENANT_KEY, TENANT_CA, TENANT_CA_KEY, FILE_NAME];

/// Why the operator's directory could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each message says it")]
pub enum OperatorError {
    #[error("{0} is not there; make it with: trefoil init, or name its directory with --operator-dir")]
    NotInitialised(PathBuf),
    #[error("{path}: {message}")]
    Syntax { path: PathBuf, message: String },
    #[error("{path} does not hold {what}")]
    Content { path: PathBuf, what: &'static str },
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Pki(#[from] PkiError),
}

/// The roles' public keys, pinned: never fetched.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RoleKeys {
    /// For the join key.
    pub registrar: RolePublicKey,
    /// For V.
    pub verifier: RolePublicKey,
    /// For U and the join key.
    pub tenant: RolePublicKey,
}

/// The operator's directory, its settings read.
#[derive(Clone, Debug)]
pub struct Operator {
    dir: PathBuf,
    url: String,
    roles: RoleKeys,
}

/// What [`write`] puts into a new directory.
pub(crate) struct NewOperator<'a> {
    pub(crate) url: &'a str,
    pub(crate) server_ca: &'a str,
    pub(crate) token: &'a ApiToken,
    pub(crate) roles: &'a RoleKeys,
    pub(crate) signing: &'a TenantSigningKey,
    pub(crate) tenant_ca: &'a Issued,
}

/// Writes a new operator's directory, the settings last.
pub(crate) fn write(dir: &Path, new: &NewOperator<'_>) -> Result<(), OperatorError> {
    let settings = format!(
        "# How the trefoil command reaches its control plane. Flags and TREFOIL_URL, TREFOIL_CA, TREFOIL_TOKEN come first.\n\
         url = \"{}\"\n\
         \n\
         # Public keys of the roles: shares are sealed to these. Pinned, never fetched.\n\
         [roles]\n\
         registrar = \"{}\"\n\
         verifier = \"{}\"\n\
         tenant = \"{}\"\n",
        new.url, new.roles.registrar, new.roles.verifier, new.roles.tenant,
    );
    files::write_all(
        dir,
        &[
            (SERVER_CA, PUBLIC_MODE, new.server_ca.as_bytes()),
            (TOKEN, SECRET_MODE, new.token.expose().as_bytes()),
            (SIGNING_KEY, SECRET_MODE, new.signing.to_text().as_bytes()),
            (TENANT_KEY, PUBLIC_MODE, pki::p256_spki_pem(new.signing.public().as_sec1()).as_bytes()),
            (TENANT_CA, PUBLIC_MODE, new.tenant_ca.certificate.as_bytes()),
            (TENANT_CA_KEY, SECRET_MODE, new.tenant_ca.key.as_bytes()),
            (FILE_NAME, PUBLIC_MODE, settings.as_bytes()),
        ],
    )?;
    Ok(())
}

impl Operator {
    /// Reads the settings in `dir`.
    ///
    /// # Errors
    /// [`OperatorError`], naming the file.
    pub fn load(dir: &Path) -> Result<Self, OperatorError> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct File {
            url: String,
            roles: Roles,
        }
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Roles {
            registrar: String,
            verifier: String,
            tenant: String,
        }
        let path = dir.join(FILE_NAME);
        let text = files::read_text(&path).map_err(|error| {
            if error.is_missing() { OperatorError::NotInitialised(path.clone()) } else { error.into() }
        })?;
        let file: File = toml::from_str(&text)
            .map_err(|error| OperatorError::Syntax { path: path.clone(), message: error.to_string() })?;
        let key = |text: &str, what| {
            RolePublicKey::from_text(text).ok_or(OperatorError::Content { path: path.clone(), what })
        };
        let roles = RoleKeys {
            registrar: key(&file.roles.registrar, "the registrar's public key")?,
            verifier: key(&file.roles.verifier, "the verifier's public key")?,
            tenant: key(&file.roles.tenant, "the tenant's public key")?,
        };
        Ok(Self { dir: dir.into(), url: file.url, roles })
    }

    /// Where the API is.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The roles' pinned public keys.
    pub const fn roles(&self) -> &RoleKeys {
        &self.roles
    }

    /// The server CA's certificate, a file.
    pub fn server_ca(&self) -> PathBuf {
        self.dir.join(SERVER_CA)
    }

    /// The tenant's public key as nodes pin it, a file.
    pub fn tenant_key(&self) -> PathBuf {
        self.dir.join(TENANT_KEY)
    }

    /// Reads the API token.
    ///
    /// # Errors
    /// [`OperatorError::File`], [`OperatorError::Content`].
    pub fn token(&self) -> Result<ApiToken, OperatorError> {
        let path = self.dir.join(TOKEN);
        ApiToken::from_text(&files::read_secret(&path)?)
            .ok_or(OperatorError::Content { path, what: "an API token (trefoil-api-…)" })
    }

    /// Reads the payload-signing key.
    ///
    /// # Errors
    /// [`OperatorError::File`], [`OperatorError::Content`].
    pub fn signing_key(&self) -> Result<TenantSigningKey, OperatorError> {
        let path = self.dir.join(SIGNING_KEY);
        TenantSigningKey::from_text(&files::read_secret(&path)?)
            .ok_or(OperatorError::Content { path, what: "a signing key (64 hex digits)" })
    }

    /// The public key that nodes are to pin.
    ///
    /// # Errors
    /// As [`signing_key`](Self::signing_key).
    pub fn signing_public(&self) -> Result<TenantPublicKey, OperatorError> {
        Ok(self.signing_key()?.public())
    }

    /// Reads the tenant's CA: its certificate in PEM, and what signs with it.
    ///
    /// # Errors
    /// [`OperatorError::File`], [`OperatorError::Pki`].
    pub fn tenant_ca(&self) -> Result<(String, Authority), OperatorError> {
        let certificate = files::read_text(&self.dir.join(TENANT_CA))?;
        let authority = Authority::load(&certificate, &files::read_secret(&self.dir.join(TENANT_CA_KEY))?)?;
        Ok((certificate, authority))
    }

    /// Keeps a node's join token, so that its agent's settings can be written later.
    ///
    /// # Errors
    /// [`OperatorError::File`].
    pub fn keep_join(&self, name: &str, token: &str) -> Result<(), OperatorError> {
        let dir = self.dir.join(JOINS);
        files::make_dir(&dir)?;
        Ok(files::write_all(&dir, &[(name, SECRET_MODE, token.as_bytes())])?)
    }

    /// A node's join token, if it is kept here.
    ///
    /// # Errors
    /// [`OperatorError::File`] but for a file that is not there.
    pub fn join(&self, name: &str) -> Result<Option<zeroize::Zeroizing<String>>, OperatorError> {
        match files::read_secret(&self.dir.join(JOINS).join(name)) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Forgets a node's join token.
    pub fn forget_join(&self, name: &str) {
        // Not there is what is wanted.
        let _ = std::fs::remove_file(self.dir.join(JOINS).join(name));
    }
}
