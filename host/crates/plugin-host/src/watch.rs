//! Tells the loader that something in the folder has changed, never what: the loader looks for itself, so a lost or
//! doubled event does no harm.

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::Notify;

/// Watches while it lives.
pub struct FolderWatch {
    watcher: RecommendedWatcher,
    folder: PathBuf,
    watched: Option<Watched>,
}

/// What the system watches: files, not names. A folder that another has taken the place of would be watched on.
#[derive(Clone, PartialEq, Eq)]
struct Watched {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl FolderWatch {
    /// Begins to watch the folder, not what lies deeper.
    ///
    /// # Errors
    /// When the system has no watches left.
    pub fn begin(folder: &Path, changed: Arc<Notify>) -> notify::Result<FolderWatch> {
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| match event {
            // Reading is no change, and the loader reads.
            Ok(event) if matches!(event.kind, EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write)) =>
                {}
            Ok(_) => changed.notify_one(),
            Err(error) => {
                tracing::warn!(%error, "watching the plugins folder failed; looking at all of it");
                changed.notify_one();
            }
        })?;
        let mut watch = FolderWatch { watcher, folder: folder.to_owned(), watched: None };
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
            let wanted = self.wanted();
            if wanted == self.watched {
                return Ok(());
            }
            if let Some(gone) = self.watched.take() {
                // The system has dropped the watch already when the folder was removed.
                let _ = self.watcher.unwatch(&gone.path);
            }
            let Some(wanted) = wanted else { return Ok(()) };
            match self.watcher.watch(&wanted.path, RecursiveMode::NonRecursive) {
                Ok(()) => self.watched = Some(wanted),
                // It went away in between: what is there now?
                Err(error) if matches!(error.kind, notify::ErrorKind::PathNotFound) => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn wanted(&self) -> Option<Watched> {
        self.folder.ancestors().find_map(|path| {
            let data = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_dir)?;
            Some(Watched { path: path.to_owned(), device: data.dev(), inode: data.ino() })
        })
    }
}
