//! A bundle that may change while the server runs: one handle for all who judge EKs, and a look at the directory for
//! whoever wants to know whether it changed. What a change means for nodes is the roles' business.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::SystemTime,
};

use super::bundle::{EkRoots, EkRootsError};

/// The trusted certificates as they are now.
#[derive(Debug, Default)]
pub struct EkTrust {
    /// A directory or file; none: the roots stay.
    path: Option<PathBuf>,
    roots: RwLock<Arc<EkRoots>>,
    /// The files that were read last, also if they could not be used.
    seen: Mutex<Option<Vec<Seen>>>,
}

/// A file as a directory shows it.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Seen {
    path: PathBuf,
    len: u64,
    modified: Option<SystemTime>,
}

impl EkTrust {
    /// Loads a bundle, or none: then no EK certificate is trusted.
    ///
    /// # Errors
    /// [`EkRootsError`].
    pub fn load(path: Option<PathBuf>) -> Result<Self, EkRootsError> {
        let Some(path) = path else { return Ok(Self::default()) };
        // Looked at before it is read: what changes in between is seen as a change.
        let seen = look(&path);
        let roots = EkRoots::load(&path)?;
        Ok(Self { path: Some(path), roots: RwLock::new(Arc::new(roots)), seen: Mutex::new(Some(seen)) })
    }

    /// These roots, for ever.
    pub fn fixed(roots: EkRoots) -> Self {
        Self { path: None, roots: RwLock::new(Arc::new(roots)), seen: Mutex::default() }
    }

    /// The roots as they are now.
    pub fn roots(&self) -> Arc<EkRoots> {
        self.roots.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where the bundle is.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Looks whether names, sizes or times changed, and then loads the bundle anew: `true` if it did. Reads files: not
    /// for a thread that must not wait.
    ///
    /// # Errors
    /// [`EkRootsError`], once for each change; the roots are what they were before.
    pub fn refresh(&self) -> Result<bool, EkRootsError> {
        let Some(path) = &self.path else { return Ok(false) };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let now = look(path);
        if seen.as_ref() == Some(&now) {
            return Ok(false);
        }
        *seen = Some(now);
        let roots = Arc::new(EkRoots::load(path)?);
        *self.roots.write().unwrap_or_else(PoisonError::into_inner) = roots;
        Ok(true)
    }
}

/// What a bundle looks like from outside; one that cannot be looked at is empty, and reading it says why.
fn look(path: &Path) -> Vec<Seen> {
    let seen = |path: PathBuf| {
        let metadata = fs::metadata(&path).ok()?;
        Some(Seen { path, len: metadata.len(), modified: metadata.modified().ok() })
    };
    let mut files: Vec<Seen> = match fs::read_dir(path) {
        Ok(entries) => entries.filter_map(|entry| seen(entry.ok()?.path())).collect(),
        Err(_) => seen(path.to_owned()).into_iter().collect(),
    };
    files.sort();
    files
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ek::tests::root_pem;

    #[test]
    fn a_changed_bundle_is_loaded_and_a_broken_one_leaves_the_old() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        file("a.pem", &root_pem("a"));
        let trust = EkTrust::load(Some(dir.path().to_owned())).unwrap();
        assert_eq!((trust.roots().count(), trust.refresh().unwrap()), (1, false));
        file("b.pem", &root_pem("b"));
        assert!(trust.refresh().unwrap());
        assert_eq!((trust.roots().count(), trust.refresh().unwrap()), (2, false));
        file("c.pem", "no certificate");
        assert!(matches!(trust.refresh(), Err(EkRootsError::BadCertificate { .. })));
        // Told once, and the old roots stay.
        assert_eq!((trust.roots().count(), trust.refresh().unwrap()), (2, false));
        fs::remove_file(dir.path().join("c.pem")).unwrap();
        fs::remove_file(dir.path().join("a.pem")).unwrap();
        assert!(trust.refresh().unwrap());
        assert_eq!(trust.roots().count(), 1);
        fs::remove_dir_all(dir.path()).unwrap();
        assert!(matches!(trust.refresh(), Err(EkRootsError::Io { .. })));
        assert_eq!(trust.roots().count(), 1);
    }

    #[test]
    fn without_a_bundle_nothing_changes() {
        assert!(!EkTrust::default().refresh().unwrap());
        assert!(!EkTrust::fixed(EkRoots::empty()).refresh().unwrap());
        assert!(EkTrust::load(None).unwrap().path().is_none());
    }
}
