//! Outside vectors as seeds, read where they are: `TREFOIL_VECTORS`, or `../shared/vectors` beside the checkout.

use std::{env, fs, path::PathBuf};

/// The files of a folder with this suffix, in order of their names; none where there are no vectors.
pub(crate) fn files(folder: &str, suffix: &str) -> Vec<Vec<u8>> {
    let root = env::var_os("TREFOIL_VECTORS")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/vectors"), PathBuf::from);
    let Ok(entries) = fs::read_dir(root.join(folder)) else { return Vec::new() };
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(suffix)));
    paths.sort();
    paths.into_iter().filter_map(|path| fs::read(path).ok()).collect()
}
