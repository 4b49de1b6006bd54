//! Where outside test data is: `TREFOIL_VECTORS`, or `../shared/vectors` beside the checkout.

use std::{env, fs, path::PathBuf};

/// A folder of the outside vectors; `None`, said on one line, where there are none.
pub(crate) fn folder(name: &str) -> Option<PathBuf> {
    let root = env::var_os("TREFOIL_VECTORS")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/vectors"), PathBuf::from);
    let folder = root.join(name);
    if folder.is_dir() {
        return Some(folder);
    }
    println!("skipped: no outside vectors `{name}` (TREFOIL_VECTORS)");
    None
}

/// A file of such a folder, which then has to be there.
pub(crate) fn read(folder: &std::path::Path, name: &str) -> Vec<u8> {
    fs::read(folder.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}
