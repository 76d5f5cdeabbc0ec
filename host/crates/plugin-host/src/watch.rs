//! Tells the loader that something in the folder has changed, never what: the loader looks for itself, so a lost or
//! doubled event does no harm.

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use std::path::Path;
use std::sync::Arc;
use tokio::sync::Notify;

/// Watches while it lives.
pub struct FolderWatch {
    _watcher: RecommendedWatcher,
}

impl FolderWatch {
    /// Begins to watch the folder, not what lies deeper.
    ///
    /// # Errors
    /// When the system has no watches left.
    pub fn begin(folder: &Path, changed: Arc<Notify>) -> notify::Result<FolderWatch> {
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| match event {
            // Reading is no change, and the loader reads.
            Ok(event) if matches!(event.kind, EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write)) =>
                {}
            Ok(_) => changed.notify_one(),
            Err(error) => {
                tracing::warn!(%error, "watching the plugins folder failed; looking at all of it");
                changed.notify_one();
            }
        })?;
        watcher.watch(folder, RecursiveMode::NonRecursive)?;
        Ok(FolderWatch { _watcher: watcher })
    }
}
