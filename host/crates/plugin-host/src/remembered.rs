//! The set in force, remembered over restarts: a plugin that guarded the queue yesterday must not be missing today
//! because its file is damaged.

use crate::plugin::Terms;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const FILE: &str = "plugins-in-force.json";

/// Its name in the cache, where it was before people were found to delete that.
const OLD_FILE: &str = "in-force.json";

/// The file, and what it holds.
pub struct Remembered {
    folder: PathBuf,
    /// None when nothing is remembered: at the first start, and when the file cannot be read.
    terms: Option<BTreeMap<String, Terms>>,
    /// The file in the cache that it was read from: removed once the set is where it belongs.
    old: Option<PathBuf>,
}

impl Remembered {
    /// Reads the file of `folder`, or else the one that an earlier version kept in `cache`. A damaged one is told of and counts as
    /// missing: it is written whole or not at all, so this needs a person's hand or a failing disk.
    pub fn read(folder: &Path, cache: &Path) -> Remembered {
        let (path, old) = (folder.join(FILE), cache.join(OLD_FILE));
        let read = match std::fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => std::fs::read(&old).map(|text| (text, Some(old))),
            read => read.map(|text| (text, None)),
        };
        let (terms, old) = match read {
            Ok((text, old)) => {
                let path = old.as_ref().unwrap_or(&path);
                let terms = serde_json::from_slice::<Vec<Terms>>(&text).inspect_err(|error| {
                    tracing::error!(path = %path.display(), %error, "the set of plugins in force cannot be read; broken plugins do not reject jobs until they load again");
                });
                (terms.ok(), old)
            }
            Err(error) => {
                if error.kind() != ErrorKind::NotFound {
                    tracing::error!(path = %path.display(), %error, "the set of plugins in force cannot be read");
                }
                (None, None)
            }
        };
        let by_name = |terms: Vec<Terms>| terms.into_iter().map(|terms| (terms.name.clone(), terms)).collect();
        Remembered { folder: folder.to_owned(), terms: terms.map(by_name), old }
    }

    /// Moves it to where it may block, and leaves one behind that remembers nothing.
    pub fn take(&mut self) -> Remembered {
        let blank = Remembered { folder: self.folder.clone(), terms: None, old: None };
        std::mem::replace(self, blank)
    }

    /// Whether nobody knows what was in force.
    pub fn is_blank(&self) -> bool {
        self.terms.is_none()
    }

    /// What was in force under this name.
    pub fn get(&self, name: &str) -> Option<&Terms> {
        self.terms.as_ref()?.get(name)
    }

    /// The names of all that were in force.
    pub fn names(&self) -> Vec<String> {
        self.terms.iter().flat_map(|terms| terms.keys().cloned()).collect()
    }

    /// Whether this is what the file holds.
    pub fn is(&self, terms: &BTreeMap<String, Terms>) -> bool {
        self.old.is_none() && self.terms.as_ref() == Some(terms)
    }

    /// Puts a new set on disk, whole or not at all. Blocks.
    ///
    /// # Errors
    /// When it cannot be written; then the old one stays.
    pub fn write(&mut self, terms: BTreeMap<String, Terms>) -> std::io::Result<()> {
        let text = serde_json::to_vec_pretty(&terms.values().collect::<Vec<_>>())?;
        let new = self.folder.join(format!("{FILE}.new"));
        let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&text)?;
        file.sync_all()?;
        std::fs::rename(&new, self.folder.join(FILE))?;
        File::open(&self.folder)?.sync_all()?;
        self.terms = Some(terms);
        if let Some(old) = self.old.take() {
            // One that stays is not read any more.
            drop(std::fs::remove_file(old));
        }
        Ok(())
    }
}
