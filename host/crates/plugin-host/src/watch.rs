//! Tells the loader that something in the folder has changed, never what: the loader looks for itself, so a lost or
//! doubled event does no harm.
//!
//! What plugins are made of may lie elsewhere: behind symbolic links, and in the files of secrets. Of the directories on the
//! way there only the names that matter are listened for.

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;
use tokio::sync::Notify;

/// Symbolic links that are followed on the way to one file: as many as Linux does (path_resolution(7)).
const MOST_LINKS: usize = 40;

/// Watches while it lives. Its functions block.
pub struct FolderWatch {
    watcher: RecommendedWatcher,
    folder: PathBuf,
    watched: Option<Watched>,
    /// Other directories, by their path without links.
    elsewhere: BTreeMap<PathBuf, Watched>,
    listened_for: Arc<Mutex<ListenedFor>>,
    changed: Arc<Notify>,
}

/// What the system watches: files, not names. A folder that another has taken the place of would be watched on.
#[derive(Clone, PartialEq, Eq)]
struct Watched {
    path: PathBuf,
    device: u64,
    inode: u64,
    /// Inodes are used again. Not every file system knows when one was made.
    made: Option<SystemTime>,
}

impl Watched {
    fn of(path: &Path) -> Option<Watched> {
        let data = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_dir)?;
        Some(Watched { path: path.to_owned(), device: data.dev(), inode: data.ino(), made: data.created().ok() })
    }

    fn is_same_directory(&self, other: &Watched) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }
}

/// What in the directories elsewhere concerns plugins.
#[derive(Default)]
struct ListenedFor {
    directories: BTreeSet<PathBuf>,
    names: BTreeSet<PathBuf>,
}

impl ListenedFor {
    fn is_concerned_by(&self, event: &Event) -> bool {
        // Reading is no change, and the loader reads.
        if matches!(event.kind, EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write)) {
            return false;
        }
        let elsewhere = |path: &Path| path.parent().is_some_and(|parent| self.directories.contains(parent));
        event.paths.is_empty() || event.paths.iter().any(|path| !elsewhere(path) || self.names.contains(path))
    }
}

impl FolderWatch {
    /// Begins to watch the folder, not what lies deeper.
    ///
    /// # Errors
    /// When the system has no watches left.
    pub fn begin(folder: &Path, changed: Arc<Notify>) -> notify::Result<FolderWatch> {
        let listened_for = Arc::new(Mutex::new(ListenedFor::default()));
        let watcher = notify::recommended_watcher({
            let (changed, listened_for) = (changed.clone(), listened_for.clone());
            move |event: notify::Result<Event>| match event {
                Ok(event) if lock(&listened_for).is_concerned_by(&event) => changed.notify_one(),
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "watching the plugins folder failed; looking at all of it");
                    changed.notify_one();
                }
            }
        })?;
        let folder = std::path::absolute(folder)?;
        let mut watch =
            FolderWatch { watcher, folder, watched: None, elsewhere: BTreeMap::new(), listened_for, changed };
        watch.follow()?;
        Ok(watch)
    }

    /// Watches the folder that now has the name, and while there is none, the place where it would be. Call it before
    /// looking into the folder: every change from then on is told.
    ///
    /// # Errors
    /// When the system has no watches left.
    pub fn follow(&mut self) -> notify::Result<()> {
        loop {
            let wanted = self.folder.ancestors().find_map(Watched::of);
            if wanted == self.watched {
                return Ok(());
            }
            if let Some(gone) = self.watched.take() {
                // The system has dropped the watch already when the folder was removed.
                let _ = self.watcher.unwatch(&gone.path);
            }
            let Some(wanted) = wanted else { return Ok(()) };
            // A directory has one watch, whoever asks for it.
            self.elsewhere.retain(|_, watched| !watched.is_same_directory(&wanted));
            match self.watcher.watch(&wanted.path, RecursiveMode::NonRecursive) {
                Ok(()) => self.watched = Some(wanted),
                // It went away in between: what is there now?
                Err(error) if matches!(error.kind, notify::ErrorKind::PathNotFound) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Watches what these files are, through all links on the way, and no other file elsewhere. When that is more than before,
    /// it counts as a change: the files may have changed before they were watched.
    ///
    /// # Errors
    /// When a directory cannot be watched, with the last such. The others are.
    pub fn listen_for(&mut self, files: impl IntoIterator<Item = PathBuf>) -> notify::Result<()> {
        let names: BTreeSet<PathBuf> = files.into_iter().flat_map(|file| hops(&file)).collect();
        let directories = names.iter().filter_map(|name| Watched::of(name.parent()?));
        let elsewhere: BTreeMap<PathBuf, Watched> = directories
            .filter(|wanted| !self.watched.as_ref().is_some_and(|folder| folder.is_same_directory(wanted)))
            .map(|wanted| (wanted.path.clone(), wanted))
            .collect();
        *lock(&self.listened_for) = ListenedFor { directories: elsewhere.keys().cloned().collect(), names };
        let gone: Vec<PathBuf> = self
            .elsewhere
            .iter()
            .filter(|(path, watched)| elsewhere.get(*path) != Some(watched))
            .map(|(path, _)| path.clone())
            .collect();
        for path in gone {
            self.elsewhere.remove(&path);
            // The system has dropped the watch already when the directory was removed.
            let _ = self.watcher.unwatch(&path);
        }
        let mut result = Ok(());
        for (path, wanted) in elsewhere {
            if self.elsewhere.contains_key(&path) {
                continue;
            }
            match self.watcher.watch(&path, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    self.elsewhere.insert(path, wanted);
                    self.changed.notify_one();
                }
                Err(error) => result = Err(error),
            }
        }
        result
    }
}

fn lock(listened_for: &Mutex<ListenedFor>) -> MutexGuard<'_, ListenedFor> {
    // It is replaced as a whole, so that nothing is half done when a holder panics.
    listened_for.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where a file could become another one: its own name in its directory, and every symbolic link on the way to it, each in a
/// path without links. When the way breaks off, the first name that is missing.
fn hops(file: &Path) -> Vec<PathBuf> {
    let mut hops = Vec::new();
    let mut at = PathBuf::from("/");
    let mut ahead: Vec<OsString> = Vec::new();
    lead(&mut at, &mut ahead, file);
    let mut links = 0;
    while let Some(name) = ahead.pop() {
        if name == ".." {
            at.pop();
            continue;
        }
        let here = at.join(name);
        match std::fs::symlink_metadata(&here).map(|data| data.is_symlink()) {
            Ok(true) => {
                links += 1;
                let target = std::fs::read_link(&here);
                hops.push(here);
                match target {
                    Ok(target) if links <= MOST_LINKS => lead(&mut at, &mut ahead, &target),
                    _ => break,
                }
            }
            Ok(false) if !ahead.is_empty() => at = here,
            Ok(false) | Err(_) => {
                hops.push(here);
                break;
            }
        }
    }
    hops
}

/// Puts a path before what is still ahead. The last name is the next one.
fn lead(at: &mut PathBuf, ahead: &mut Vec<OsString>, path: &Path) {
    for component in path.components().rev() {
        match component {
            Component::RootDir => *at = PathBuf::from("/"),
            Component::ParentDir => ahead.push("..".into()),
            Component::Normal(name) => ahead.push(name.to_owned()),
            Component::CurDir | Component::Prefix(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn every_place_at_which_a_file_could_become_another_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().canonicalize().unwrap();
        std::fs::create_dir(at.join("one")).unwrap();
        std::fs::write(at.join("one/key"), "1").unwrap();
        symlink("one", at.join("current")).unwrap();
        symlink("../current/key", at.join("one/again")).unwrap();
        symlink(at.join("current/key"), at.join("key")).unwrap();
        symlink("gone/away", at.join("dangling")).unwrap();
        symlink("ring", at.join("ring")).unwrap();
        let names = |file: &str| -> Vec<String> {
            let hops = hops(&at.join(file));
            hops.iter().map(|hop| hop.strip_prefix(&at).unwrap().display().to_string()).collect()
        };
        assert_eq!(names("one/key"), ["one/key"]);
        assert_eq!(names("key"), ["key", "current", "one/key"]);
        assert_eq!(names("one/again"), ["one/again", "current", "one/key"]);
        assert_eq!(names("dangling"), ["dangling", "gone"]);
        assert_eq!(names("none/key"), ["none"]);
        assert_eq!(names("ring").len(), MOST_LINKS + 1);
    }

    #[tokio::test]
    async fn a_file_elsewhere_is_heard_of_and_its_neighbours_are_not() {
        let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let changed = Arc::new(Notify::new());
        let mut watch = FolderWatch::begin(folder.path(), changed.clone()).unwrap();
        let secret = elsewhere.path().canonicalize().unwrap().join("secret");
        watch.listen_for([secret.clone()]).unwrap();
        changed.notified().await;
        watch.listen_for([secret.clone()]).unwrap();
        std::fs::write(elsewhere.path().join("neighbour"), "").unwrap();
        std::fs::write(&secret, "").unwrap();
        changed.notified().await;
        let concerned =
            |path: &Path, kind| lock(&watch.listened_for).is_concerned_by(&Event::new(kind).add_path(path.to_owned()));
        assert!(concerned(&secret, EventKind::Any));
        assert!(!concerned(&secret, EventKind::Access(AccessKind::Any)));
        assert!(!concerned(&secret.with_file_name("neighbour"), EventKind::Any));
        assert!(concerned(&folder.path().join("anything"), EventKind::Any));
    }
}
