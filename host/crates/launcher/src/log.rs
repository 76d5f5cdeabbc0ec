//! Reading a launch's log: its end, or all of it while it grows.

use std::fs::File;
use std::future::Future;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::Stream;
use futures_util::future::{FutureExt, Shared};
use taxiway_job::{JobId, LaunchId};

use crate::local::launch_directory;
use crate::watch::Watch;
use crate::wire::file;

/// How much one item of [`follow`] holds at most.
const CHUNK_BYTES: usize = 256 << 10;

/// Where the log of a launch is. It exists from [`crate::Event::Prepared`] on.
#[must_use]
pub fn path(jobs_dir: &Path, job: JobId, launch: LaunchId) -> PathBuf {
    launch_directory(jobs_dir, job, launch).join(file::LOG)
}

/// The last bytes of a log.
///
/// # Errors
/// When the file cannot be read.
pub fn tail(path: &Path, max_bytes: usize) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    let start = size.saturating_sub(max_bytes as u64);
    let mut bytes = vec![0; usize::try_from(size - start).unwrap_or(max_bytes)];
    file.read_exact_at(&mut bytes, start)?;
    Ok(bytes)
}

/// The bytes of a log from `offset` on, each once and in order, as they are written. It ends when all was read and `ended` has
/// resolved, which must not happen before the launch's end was reported. Nothing is looked at while nothing changes.
///
/// An offset beyond the end waits for the log to grow past it.
pub fn follow(
    path: PathBuf,
    offset: u64,
    ended: impl Future<Output = ()> + Send + 'static,
) -> impl Stream<Item = io::Result<Bytes>> + Send {
    let ended: Ended = ended.boxed().shared();
    let follower = Follower::Opening { path, offset, ended };
    futures_util::stream::unfold(follower, |follower| async move {
        let mut reader = match follower {
            Follower::Opening { path, offset, ended } => match Reader::open(&path, offset, ended) {
                Ok(reader) => reader,
                Err(error) => return Some((Err(error), Follower::Over)),
            },
            Follower::Reading(reader) => reader,
            Follower::Over => return None,
        };
        match reader.next().await {
            Ok(Some(bytes)) => Some((Ok(bytes), Follower::Reading(reader))),
            Ok(None) => None,
            Err(error) => Some((Err(error), Follower::Over)),
        }
    })
}

type Ended = Shared<Pin<Box<dyn Future<Output = ()> + Send>>>;

enum Follower {
    Opening { path: PathBuf, offset: u64, ended: Ended },
    Reading(Reader),
    Over,
}

struct Reader {
    file: Arc<File>,
    offset: u64,
    /// Made before the first read, so that nothing written after that is missed.
    watch: Watch,
    ended: Ended,
}

impl Reader {
    fn open(path: &Path, offset: u64, ended: Ended) -> io::Result<Self> {
        let file = Arc::new(File::open(path)?);
        Ok(Self { file, offset, watch: Watch::file(path)?, ended })
    }

    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            // Asked before the read: what is read after the end is all there will be.
            let over = self.ended.clone().now_or_never().is_some();
            let file = Arc::clone(&self.file);
            let offset = self.offset;
            let read = tokio::task::spawn_blocking(move || {
                let mut bytes = vec![0; CHUNK_BYTES];
                file.read_at(&mut bytes, offset).map(|read| {
                    bytes.truncate(read);
                    bytes
                })
            });
            let bytes = read.await.map_err(io::Error::other)??;
            if !bytes.is_empty() {
                self.offset += bytes.len() as u64;
                return Ok(Some(bytes.into()));
            }
            if over {
                return Ok(None);
            }
            tokio::select! {
                () = self.watch.changed() => {}
                () = self.ended.clone() => {}
            }
        }
    }
}
