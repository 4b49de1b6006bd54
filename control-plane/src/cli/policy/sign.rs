//! `trefoil policy sign` and `trefoil policy key`: policies in DSSE envelopes, signed where the operator is.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use control_plane::appraisal::policy::dsse::{self, P256Key};
use control_plane::appraisal::policy::{PAYLOAD_TYPE, Policy as Parsed};
use control_plane::{files, pki};
use p256::SecretKey;
use p256::ecdsa::SigningKey;
use rustls::pki_types::{PrivateKeyDer, pem::PemObject};
use serde::Serialize;
use zeroize::Zeroizing;

use crate::cli::{Context, output};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    trefoil policy sign policy.toml --out policy.signed.json\n  \
    trefoil policy key > policy-key.pem\n\n\
    Where `policy_keys` names the key's public half in the settings of verifier and tenant (docs/config.md), nothing but\n\
    signed policies is taken and used.")]
pub(crate) struct Sign {
    /// The policy's file: TOML or JSON
    file: PathBuf,
    /// Private key, P-256, PEM; its owner's alone to read [default: the operator's payload-signing key]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Where to write the envelope; a file that is there is left alone [default: standard output]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  trefoil policy key > /etc/trefoil/policy-key.pem")]
pub(crate) struct Key {
    /// Private key, P-256, PEM; its owner's alone to read [default: the operator's payload-signing key]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
}

/// What `--json` says of a signed policy.
#[derive(Serialize)]
struct Signed {
    id: String,
    key_id: String,
    file: Option<String>,
}

pub(crate) fn sign(context: &Context, arguments: &Sign) -> anyhow::Result<()> {
    let shown = || arguments.file.display().to_string();
    let bytes = super::read(&arguments.file)?;
    if dsse::is_envelope(&bytes) {
        bail!("{} is signed already: sign the policy's text itself", shown());
    }
    // Nothing is signed that could not be used.
    Parsed::parse(&bytes).with_context(shown)?;
    let (signing, public) = signing_key(context, arguments.key.as_deref())?;
    let envelope = dsse::sign(&bytes, PAYLOAD_TYPE, &signing);
    let policy = Parsed::parse(&envelope).context("in its envelope the policy is too long")?;
    if context.json() && arguments.out.is_none() {
        bail!("--json needs --out: the envelope would be on standard output too");
    }
    super::write(arguments.out.as_deref(), &envelope)?;
    if context.json() {
        let file = arguments.out.as_ref().map(|path| path.display().to_string());
        return output::print_json(&Signed { id: hex::encode(policy.id()), key_id: public.id(), file });
    }
    output::note(&format!(
        "Signed by the key {}. Where `policy_keys` are set they have to name it (trefoil policy key prints it):\n{}",
        public.id(),
        pki::p256_spki_pem(public.as_sec1()).trim_end()
    ));
    Ok(())
}

pub(crate) fn key(context: &Context, arguments: &Key) -> anyhow::Result<()> {
    let (_, public) = signing_key(context, arguments.key.as_deref())?;
    output::print(&pki::p256_spki_pem(public.as_sec1()))
}

/// The key that signs: of a file, else the operator's payload-signing key. What it signs here begins differently from a
/// manifest, so neither is ever taken for the other.
fn signing_key(context: &Context, path: Option<&Path>) -> anyhow::Result<(SigningKey, P256Key)> {
    let signing = match path {
        Some(path) => read_key(path)?,
        None => {
            let text = context.operator()?.signing_key()?.to_text();
            let mut scalar = Zeroizing::new([0; 32]);
            hex::decode_to_slice(text.as_bytes(), scalar.as_mut_slice()).context("the payload-signing key")?;
            SigningKey::from_slice(scalar.as_slice()).ok().context("the payload-signing key is no key of P-256")?
        }
    };
    let point = signing.verifying_key().to_encoded_point(false);
    let public = P256Key::from_sec1(point.as_bytes()).context("the key has no public half")?;
    Ok((signing, public))
}

fn read_key(path: &Path) -> anyhow::Result<SigningKey> {
    let what = || format!("{} does not hold a P-256 private key in PEM (PKCS #8 or SEC 1)", path.display());
    let text = files::read_secret(path)?;
    let key = match PrivateKeyDer::from_pem_slice(text.as_bytes()) {
        Ok(PrivateKeyDer::Pkcs8(der)) => {
            use p256::pkcs8::DecodePrivateKey;
            SecretKey::from_pkcs8_der(der.secret_pkcs8_der()).ok()
        }
        Ok(PrivateKeyDer::Sec1(der)) => SecretKey::from_sec1_der(der.secret_sec1_der()).ok(),
        _ => None,
    };
    key.map(SigningKey::from).with_context(what)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_read_in_either_form_and_only_if_nobody_else_can() {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        std::fs::write(&path, pair.serialize_pem()).unwrap();
        let mode = |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        mode(0o644);
        assert!(read_key(&path).unwrap_err().to_string().contains("chmod 600"));
        mode(0o600);
        let key = read_key(&path).unwrap();
        assert_eq!(key.verifying_key().to_encoded_point(false).as_bytes(), pair.public_key_raw());
        // SEC 1: SEQUENCE { 1, OCTET STRING }, the curve left out.
        let sec1 = [&[0x30, 0x25, 2, 1, 1, 4, 0x20], &*key.to_bytes()].concat();
        let body = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, sec1);
        std::fs::write(&path, format!("-----BEGIN EC PRIVATE KEY-----\n{body}\n-----END EC PRIVATE KEY-----\n"))
            .unwrap();
        assert_eq!(read_key(&path).unwrap().to_bytes(), key.to_bytes());
        std::fs::write(&path, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n").unwrap();
        assert!(read_key(&path).unwrap_err().to_string().contains("P-256 private key"));
    }
}
