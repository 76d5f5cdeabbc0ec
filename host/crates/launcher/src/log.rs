//! Reading a launch's log: its end, or all of it while it grows.

use std::fs::File;
use std::future::Future;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
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

/// Opens a log to be read, or another file of a launch.
///
/// A job can put anything in its place. What is no regular file is refused: a pipe would keep its reader waiting, and a
/// link would show a file of somebody else's choice.
///
/// # Errors
/// When it cannot be opened, or is no regular file.
pub fn open(path: &Path) -> io::Result<File> {
    // Not waiting: the other end of a pipe may never be opened. A regular file has no use for the flag (open(2)).
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW).open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"))
    }
}

/// The last bytes of a log.
///
/// # Errors
/// When the file cannot be read.
pub fn tail(path: &Path, max_bytes: usize) -> io::Result<Vec<u8>> {
    let mut file = open(path)?;
    let size = file.metadata()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(max_bytes as u64)))?;
    let mut bytes = Vec::new();
    // It may have grown since, or been cut.
    file.take(max_bytes as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The bytes of a log from `offset` on, each once and in order, as they are written. It ends when all was read and `ended` has
/// resolved, which must not happen before the launch's end was reported. Nothing is looked at while nothing changes.
///
/// An offset beyond the end waits for the log to grow past it. A log that is not there was removed, and what is written to it
/// goes with it: then there is nothing but the end to wait for.
pub fn follow(
    path: PathBuf,
    offset: u64,
    ended: impl Future<Output = ()> + Send + 'static,
) -> impl Stream<Item = io::Result<Bytes>> + Send {
    let ended: Ended = ended.boxed().shared();
    let follower = Follower::Opening { path, offset, ended };
    futures_util::stream::unfold(follower, |follower| async move {
        let mut reader = match follower {
            Follower::Opening { path, offset, ended } => match Reader::open(&path, offset, ended.clone()) {
                Ok(reader) => reader,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    ended.await;
                    return None;
                }
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
        let file = Arc::new(open(path)?);
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

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::StreamExt;
    use std::pin::pin;

    #[tokio::test]
    async fn a_log_that_is_not_there_ends_with_the_launch_and_not_before() {
        let directory = tempfile::tempdir().expect("a directory");
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let path = directory.path().join("log");
        let mut follower = pin!(follow(path, 0, async { ended.await.unwrap_or(()) }));
        assert!(follower.next().now_or_never().is_none(), "nothing has happened yet");
        end.send(()).expect("somebody waits");
        assert!(follower.next().await.is_none());
    }

    #[test]
    fn what_is_no_regular_file_is_no_log() {
        let directory = tempfile::tempdir().expect("a directory");
        let (log, link, pipe) =
            (directory.path().join("log"), directory.path().join("link"), directory.path().join("pipe"));
        std::fs::write(&log, "0123456789").expect("a file");
        std::os::unix::fs::symlink(&log, &link).expect("a link");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        assert_eq!(tail(&log, 4).expect("a log"), b"6789");
        assert_eq!(tail(&log, 40).expect("a log"), b"0123456789");
        for other in [link, pipe, directory.path().to_owned()] {
            assert!(tail(&other, 4).is_err(), "{}", other.display());
        }
    }
}
