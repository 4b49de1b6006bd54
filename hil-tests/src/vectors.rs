//! Finds the outside test data (boot logs, IMA lists, certificates, published vectors), which is never copied into
//! this repository: the sources' licences are their own.

use std::path::{Path, PathBuf};

/// The directory called `name` in the outside vectors: under `TREFOIL_VECTORS`, or in `../shared/vectors` beside the
/// checkout. Where neither exists, prints one `skipped: …` line that names `what` was not checked.
pub fn find(name: &str, what: &str) -> Option<PathBuf> {
    let root = std::env::var_os("TREFOIL_VECTORS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/vectors"), PathBuf::from);
    let path = root.join(name);
    if path.is_dir() {
        return Some(path);
    }
    println!("skipped: {what} (no {}; TREFOIL_VECTORS names the directory)", path.display());
    None
}
