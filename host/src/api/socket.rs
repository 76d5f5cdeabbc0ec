//! Unix sockets at paths of any length.
//!
//! The kernel takes 107 bytes of a path (unix(7)). A longer one is reached through `/proc/self/fd/N`, where `N` is its
//! directory, opened.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// The longest path that fits `sockaddr_un` with its final NUL.
const LONGEST_PATH: usize = 107;

/// A path by which the socket can be reached. It holds as long as the value lives.
#[derive(Debug)]
pub struct SocketPath {
    short: PathBuf,
    /// Keeps `/proc/self/fd/N` meaning the directory.
    _directory: Option<File>,
}

impl SocketPath {
    /// # Errors
    /// When the path is too long and its directory cannot be opened.
    pub fn new(path: &Path) -> io::Result<Self> {
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path of a socket must name a file"));
        };
        if path.as_os_str().len() <= LONGEST_PATH {
            return Ok(Self { short: path.to_owned(), _directory: None });
        }
        let directory =
            OpenOptions::new().read(true).custom_flags(nix::libc::O_PATH | nix::libc::O_DIRECTORY).open(directory)?;
        let short = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name);
        Ok(Self { short, _directory: Some(directory) })
    }

    /// The path to bind or connect to.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        &self.short
    }
}

/// A socket that listens, and whose file goes when it is dropped.
#[derive(Debug)]
pub(super) struct Bound {
    pub(super) listener: UnixListener,
    file: PathBuf,
}

impl Drop for Bound {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.file) {
            tracing::debug!(%error, socket = %self.file.display(), "the socket's file was gone already");
        }
    }
}

/// Listens at `path` with these permissions. What a server that is gone has left there is replaced, in one step and with its
/// permissions already set; a server that still answers is not.
///
/// # Errors
/// `AddrInUse` when somebody answers there or the path is no socket; else the kernel's.
pub(super) fn bind(path: &Path, mode: u32) -> io::Result<Bound> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "there is a file of that name that is no socket"));
        }
        Ok(_) if UnixStream::connect(SocketPath::new(path)?.as_path()).is_ok() => {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another server listens there"));
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut partial = path.as_os_str().to_owned();
    partial.push(format!(".{}", std::process::id()));
    let partial = PathBuf::from(partial);
    // Left by a process that had our id and was killed in between.
    if partial.exists() {
        std::fs::remove_file(&partial)?;
    }
    let listener = UnixListener::bind(SocketPath::new(&partial)?.as_path())?;
    std::fs::set_permissions(&partial, std::fs::Permissions::from_mode(mode))?;
    std::fs::rename(&partial, path)?;
    listener.set_nonblocking(true)?;
    Ok(Bound { listener, file: path.to_owned() })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_path_of_300_bytes_can_be_bound_and_reached_and_has_its_mode() {
        let place = tempfile::tempdir().expect("a directory");
        let deep = place.path().join("d".repeat(150)).join("e".repeat(150));
        std::fs::create_dir_all(&deep).expect("directories");
        let path = deep.join("taxiway.sock");
        let bound = bind(&path, 0o600).expect("bound");
        assert_eq!(std::fs::metadata(&path).expect("metadata").mode() & 0o777, 0o600);
        UnixStream::connect(SocketPath::new(&path).expect("a path").as_path()).expect("connected");
        drop(bound);
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_that_nobody_answers_is_replaced_and_one_that_somebody_answers_is_not() {
        let place = tempfile::tempdir().expect("a directory");
        let path = place.path().join("taxiway.sock");
        drop(UnixListener::bind(&path).expect("a socket whose server is gone"));
        let first = bind(&path, 0o600).expect("replaced");
        assert_eq!(bind(&path, 0o600).expect_err("taken").kind(), io::ErrorKind::AddrInUse);
        drop(first);
        std::fs::write(&path, "a letter").expect("a file");
        assert_eq!(bind(&path, 0o600).expect_err("no socket").kind(), io::ErrorKind::AddrInUse);
    }
}
