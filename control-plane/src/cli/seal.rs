//! Sealing on the operator's side: the payload directory, the node's certificate, the sealing, its upload.
//!
//! K_b, the plaintext and the signing key stay in this process; what goes out is ciphertext.

use std::convert::Infallible;
use std::fs;
use std::io::{IsTerminal, Read};
use std::num::NonZeroU64;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use control_plane::http::model;
use control_plane::operator::Operator;
use control_plane::pki;
use indicatif::{ProgressBar, ProgressStyle};
use protocol::crypto::container::{self, File, write_container};
use protocol::crypto::seal::{SealKeys, SealOptions, Sealing, seal};
use protocol::crypto::{TenantSigningKey, sha256};
use protocol::id::Subject;
use protocol::limits::{MAX_PAYLOAD_FILES, MAX_PAYLOAD_LEN};
use rand_core::OsRng;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::client::Client;
use super::{Span, output};

/// What goes into a payload.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct PayloadArguments {
    /// Directory of the node's files, at most 64 MiB in 1,024 files; executable files stay executable
    #[arg(long, value_name = "DIR")]
    pub(crate) payload: Option<PathBuf>,
    /// Add a node certificate and key from the tenant's CA: node.crt, node.key, ca.crt
    #[arg(long)]
    pub(crate) issue_cert: bool,
    /// Let the agent run the payload's file `autorun`
    #[arg(long)]
    pub(crate) autorun: bool,
    /// The node is not to accept this payload after so long, such as 30d [default: for ever]
    #[arg(long, value_name = "SPAN")]
    pub(crate) not_after: Option<Span>,
}

impl PayloadArguments {
    /// Whether there is anything to seal.
    pub(crate) const fn is_given(&self) -> bool {
        self.payload.is_some() || self.issue_cert
    }
}

/// A sealing, ready to be uploaded.
pub(crate) struct Sealed {
    sealing: Sealing,
    chunks: Vec<Vec<u8>>,
}

impl Sealed {
    /// The sealing's id.
    pub(crate) fn id(&self) -> String {
        self.sealing.sealing_id.to_string()
    }
}

/// Reads, encrypts and signs the payload of the node called `name`, for `subject`.
pub(crate) fn seal_payload(
    operator: &Operator,
    signing: &TenantSigningKey,
    name: &str,
    subject: Subject,
    arguments: &PayloadArguments,
) -> anyhow::Result<Sealed> {
    let mut files = Vec::new();
    if let Some(dir) = &arguments.payload {
        read_dir(dir, &mut files)?;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock of this machine is before 1970")?;
    let not_after = arguments.not_after.map(|Span(span)| now.saturating_add(span));
    if arguments.issue_cert {
        issue_certificate(operator, name, not_after, &mut files)?;
    }
    if arguments.autorun && !files.iter().any(|file| file.path == "autorun" && file.executable) {
        bail!("--autorun needs an executable file called `autorun` at the top of the payload directory");
    }
    let list: Vec<File<'_>> =
        files.iter().map(|file| File { path: &file.path, executable: file.executable, bytes: &file.bytes }).collect();
    let plaintext = write_container(&list).context("the payload directory")?;
    drop(list);
    drop(files);

    let payload_id = sha256(&[b"trefoil-payload-of", name.as_bytes()]);
    let options = SealOptions {
        subject,
        payload_id: *payload_id.first_chunk::<16>().context("a digest is longer than that")?,
        // Ascending with every sealing, for as long as the clock does.
        version: now.as_secs(),
        autorun: arguments.autorun,
        not_after: not_after.and_then(|end| NonZeroU64::new(end.as_secs())),
    };
    let roles = operator.roles();
    let keys = SealKeys { signing, tenant: &roles.tenant, verifier: &roles.verifier };
    let mut chunks = Vec::new();
    let sealing = seal(&options, &plaintext, &keys, &mut OsRng, |chunk| {
        chunks.push(chunk.to_vec());
        Ok::<_, Infallible>(())
    })?;
    Ok(Sealed { sealing, chunks })
}

/// Uploads a sealing, with a progress bar on a terminal. One that is never used by a node is garbage that the server may
/// keep; it opens nothing.
pub(crate) fn upload(client: &Client, sealed: &Sealed) -> anyhow::Result<()> {
    let Sealed { sealing, chunks } = sealed;
    let id = sealed.id();
    let new = model::NewSealing {
        manifest: hex::encode(sealing.manifest),
        signature: hex::encode(sealing.signature),
        u_sealed: hex::encode(sealing.u_sealed.to_bytes()),
        v_sealed: hex::encode(sealing.v_sealed.to_bytes()),
    };
    let _: model::Sealing = client.post("/api/v1/sealings", &new).context("the sealing was not taken")?;
    let len: usize = chunks.iter().map(Vec::len).sum();
    let bar = if std::io::stderr().is_terminal() && chunks.len() > 4 {
        let style = ProgressStyle::with_template("payload {bar:30} {bytes}/{total_bytes} {bytes_per_sec}");
        ProgressBar::new(len as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
    } else {
        ProgressBar::hidden()
    };
    for (index, chunk) in chunks.iter().enumerate() {
        client
            .put_bytes(&format!("/api/v1/sealings/{id}/chunks/{index}"), chunk)
            .with_context(|| format!("chunk {index} of the payload was not taken"))?;
        bar.inc(chunk.len() as u64);
    }
    bar.finish_and_clear();
    let _: model::Sealing =
        client.post_empty(&format!("/api/v1/sealings/{id}/finish")).context("the sealing was not finished")?;
    output::note(&format!("sealed: {id}, {} bytes of ciphertext", len));
    Ok(())
}

struct PayloadFile {
    path: String,
    executable: bool,
    bytes: Zeroizing<Vec<u8>>,
}

fn read_dir(top: &Path, files: &mut Vec<PayloadFile>) -> anyhow::Result<()> {
    let mut left = MAX_PAYLOAD_LEN;
    let mut dirs = vec![(top.to_owned(), String::new())];
    while let Some((dir, prefix)) = dirs.pop() {
        let entries = fs::read_dir(&dir).with_context(|| dir.display().to_string())?;
        for entry in entries {
            let entry = entry.with_context(|| dir.display().to_string())?;
            let shown = entry.path();
            let name = entry.file_name();
            let Some(name) = name.to_str() else { bail!("{}: the name is not UTF-8", shown.display()) };
            let path = format!("{prefix}{name}");
            if !container::is_path(&path) {
                bail!(
                    "{}: a path in a payload has at most 255 bytes, no backslash and no control character",
                    shown.display()
                );
            }
            // Of the entry itself, not of what it may point to.
            let metadata = entry.metadata().with_context(|| shown.display().to_string())?;
            let kind = metadata.file_type();
            if kind.is_symlink() {
                bail!(
                    "{} is a symbolic link; a payload holds plain files only: put the file itself there",
                    shown.display()
                );
            } else if kind.is_dir() {
                dirs.push((shown, format!("{path}/")));
            } else if kind.is_file() {
                if files.len() >= MAX_PAYLOAD_FILES {
                    bail!("{} has more than {MAX_PAYLOAD_FILES} files", top.display());
                }
                let bytes = read_file(&shown, &metadata, left)?;
                left = left.saturating_sub(bytes.len() as u64);
                files.push(PayloadFile { path, executable: metadata.mode() & 0o100 != 0, bytes });
            } else {
                bail!("{} is neither a file nor a directory", shown.display());
            }
        }
    }
    if files.is_empty() {
        bail!("{} holds no file", top.display());
    }
    Ok(())
}

fn read_file(path: &Path, expected: &fs::Metadata, left: u64) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    let shown = || path.display().to_string();
    let file = fs::File::open(path).with_context(shown)?;
    let metadata = file.metadata().with_context(shown)?;
    if (metadata.dev(), metadata.ino()) != (expected.dev(), expected.ino()) {
        bail!("{} was replaced while it was read", path.display());
    }
    if metadata.len() > left {
        bail!("the payload is longer than {} MiB", MAX_PAYLOAD_LEN >> 20);
    }
    // Room for all of it at once: growing would leave plaintext behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(metadata.len())?.saturating_add(1)));
    file.take(left + 1).read_to_end(&mut bytes).with_context(shown)?;
    if bytes.len() as u64 > left {
        bail!("the payload is longer than {} MiB", MAX_PAYLOAD_LEN >> 20);
    }
    Ok(bytes)
}

fn issue_certificate(
    operator: &Operator,
    name: &str,
    not_after: Option<Duration>,
    files: &mut Vec<PayloadFile>,
) -> anyhow::Result<()> {
    const NAMES: [&str; 3] = ["node.crt", "node.key", "ca.crt"];
    if let Some(file) = files.iter().find(|file| NAMES.contains(&file.path.as_str())) {
        bail!("the payload directory has a file {} already, which --issue-cert would add", file.path);
    }
    let end = not_after
        .and_then(|end| i64::try_from(end.as_secs()).ok())
        .and_then(|end| OffsetDateTime::from_unix_timestamp(end).ok());
    let (ca, authority) = operator.tenant_ca()?;
    let pki::Issued { certificate, key } = authority.issue_node(name, end)?;
    let file =
        |path: &str, bytes: Vec<u8>| PayloadFile { path: path.into(), executable: false, bytes: Zeroizing::new(bytes) };
    files.push(file("node.crt", certificate.into_bytes()));
    files.push(file("node.key", key.as_bytes().to_vec()));
    files.push(file("ca.crt", ca.into_bytes()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn read(dir: &Path) -> anyhow::Result<Vec<(String, bool, usize)>> {
        let mut files = Vec::new();
        read_dir(dir, &mut files)?;
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(files.into_iter().map(|file| (file.path, file.executable, file.bytes.len())).collect())
    }

    #[test]
    fn a_directory_is_read_with_its_executables() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        fs::write(dir.path().join("etc/app.toml"), "x = 1").unwrap();
        fs::write(dir.path().join("autorun"), "#!/bin/sh\n").unwrap();
        fs::set_permissions(dir.path().join("autorun"), fs::Permissions::from_mode(0o755)).unwrap();
        let files = read(dir.path()).unwrap();
        assert_eq!(files, [("autorun".into(), true, 10), ("etc/app.toml".into(), false, 5)]);
    }

    #[test]
    fn a_symbolic_link_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        symlink("/etc/passwd", dir.path().join("leak")).unwrap();
        let error = read(dir.path()).unwrap_err().to_string();
        assert!(error.contains("leak") && error.contains("symbolic link"), "{error}");
    }

    #[test]
    fn an_empty_directory_and_one_over_the_limits_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read(dir.path()).unwrap_err().to_string().contains("holds no file"));
        fs::File::create(dir.path().join("big")).unwrap().set_len(MAX_PAYLOAD_LEN + 1).unwrap();
        assert!(read(dir.path()).unwrap_err().to_string().contains("64 MiB"));
        fs::remove_file(dir.path().join("big")).unwrap();
        for n in 0..=MAX_PAYLOAD_FILES {
            fs::write(dir.path().join(n.to_string()), "").unwrap();
        }
        assert!(read(dir.path()).unwrap_err().to_string().contains("1024 files"));
    }
}
