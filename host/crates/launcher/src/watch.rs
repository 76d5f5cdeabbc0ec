//! Waiting for files to change, without looking at them again and again.
//!
//! One inotify instance serves the whole process: a user may have 128 of them (inotify(7)), and there may be more logs being
//! followed than that. One thread reads it, so that a watch belongs to no particular runtime.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use tokio::sync::Notify;

/// Who waits for what.
struct Watcher {
    inotify: Inotify,
    /// The same file gives the same descriptor again, whoever asks.
    waiting: Mutex<HashMap<WatchDescriptor, Vec<Arc<Notify>>>>,
}

/// A file or directory that is being watched until this is dropped.
pub(crate) struct Watch {
    watcher: &'static Watcher,
    descriptor: WatchDescriptor,
    notify: Arc<Notify>,
}

impl Watch {
    /// Watches a file for being written.
    pub(crate) fn file(path: &Path) -> io::Result<Self> {
        Self::new(path, AddWatchFlags::IN_MODIFY)
    }

    /// Watches a directory for files that were put into it: created, closed after writing, or moved in.
    pub(crate) fn directory(path: &Path) -> io::Result<Self> {
        Self::new(path, AddWatchFlags::IN_CREATE | AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVED_TO)
    }

    /// Watches a directory for new names in it, and for nothing that is done to files which have one.
    pub(crate) fn names(path: &Path) -> io::Result<Self> {
        Self::new(path, AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO)
    }

    fn new(path: &Path, mask: AddWatchFlags) -> io::Result<Self> {
        let watcher = watcher()?;
        let notify = Arc::new(Notify::new());
        // Adding and removing under the lock: a descriptor that is being removed must not be handed out again.
        let mut waiting = watcher.waiting();
        // Not what a link leads to, which may be on a file system that does not answer: everybody would wait for the lock.
        let descriptor = watcher.inotify.add_watch(path, mask | AddWatchFlags::IN_DONT_FOLLOW)?;
        waiting.entry(descriptor).or_default().push(Arc::clone(&notify));
        drop(waiting);
        Ok(Self { watcher, descriptor, notify })
    }

    /// Resolves when it has changed since the watch was made or since this last resolved. Nothing is missed between two calls;
    /// several changes count as one.
    pub(crate) async fn changed(&self) {
        self.notify.notified().await;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut waiting = self.watcher.waiting();
        if let Some(all) = waiting.get_mut(&self.descriptor) {
            all.retain(|notify| !Arc::ptr_eq(notify, &self.notify));
            if all.is_empty() {
                waiting.remove(&self.descriptor);
                // A file that was removed has taken its watch with it.
                let _ = self.watcher.inotify.rm_watch(self.descriptor);
            }
        }
    }
}

impl Watcher {
    fn waiting(&self) -> MutexGuard<'_, HashMap<WatchDescriptor, Vec<Arc<Notify>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) {
        while let Ok(events) = self.inotify.read_events() {
            let waiting = self.waiting();
            for event in events {
                if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                    waiting.values().flatten().for_each(|notify| notify.notify_one());
                } else if let Some(all) = waiting.get(&event.wd) {
                    all.iter().for_each(|notify| notify.notify_one());
                }
            }
        }
    }
}

fn watcher() -> io::Result<&'static Watcher> {
    static WATCHER: OnceLock<Watcher> = OnceLock::new();
    if let Some(watcher) = WATCHER.get() {
        return Ok(watcher);
    }
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC)?;
    let mut first = false;
    let watcher = WATCHER.get_or_init(|| {
        first = true;
        Watcher { inotify, waiting: Mutex::default() }
    });
    if first {
        std::thread::Builder::new().name("file-watch".to_owned()).spawn(|| watcher.read())?;
    }
    Ok(watcher)
}
