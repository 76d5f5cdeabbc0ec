//! One server on one data directory.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::statfs::{self, FsType};

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// It cannot be made or opened.
    #[error("cannot {doing} the data directory {}: {source}", path.display())]
    Io {
        /// `create`, `open`, `lock` …
        doing: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another server uses it.
    #[error(
        "another taxiway server uses the data directory {}: stop it, or give this one a directory of its own with --data-dir",
        path.display()
    )]
    InUse {
        /// Which.
        path: PathBuf,
    },
    /// It lies on a filesystem that keeps no promise about locks and fsync.
    #[error(
        "the data directory {} lies on a network filesystem ({kind}), where a database can be damaged: choose a local directory with --data-dir",
        path.display()
    )]
    Network {
        /// Which.
        path: PathBuf,
        /// The filesystem.
        kind: &'static str,
    },
    /// Others may write to it, and so put a token or a database of their own there.
    #[error(
        "others than its owner may write to the data directory {} (mode {mode:03o}): run `chmod go-w {}`, or choose another with --data-dir",
        path.display(),
        path.display()
    )]
    Writable {
        /// Which.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Somebody else could change what is in it.
    #[error(
        "the data directory {} belongs to uid {owner}, not to uid {user} who runs the service: choose another with --data-dir",
        path.display()
    )]
    NotOurs {
        /// Which.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who we are.
        user: u32,
    },
}

/// The claim of this process on a data directory. It ends when the value is dropped, and with the process.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    /// Holds the lock.
    _lock: Flock<File>,
}

impl DataDir {
    /// Makes the directory (mode 0700) when it is not there, and claims it for this process.
    ///
    /// # Errors
    /// When it cannot be made, is another user's or writable for others, lies on a network filesystem, or another server uses it.
    pub fn claim(path: &Path) -> Result<Self, DataDirError> {
        let failed = |doing| move |source| DataDirError::Io { doing, path: path.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("create"))?;
        let metadata = std::fs::metadata(path).map_err(failed("open"))?;
        let user = nix::unistd::geteuid().as_raw();
        if metadata.uid() != user {
            return Err(DataDirError::NotOurs { path: path.to_owned(), owner: metadata.uid(), user });
        }
        let mode = metadata.mode() & 0o777;
        if mode & 0o022 != 0 {
            return Err(DataDirError::Writable { path: path.to_owned(), mode });
        }
        let filesystem = statfs::statfs(path).map_err(|error| failed("look at")(error.into()))?.filesystem_type();
        if let Some(kind) = network_filesystem(filesystem) {
            return Err(DataDirError::Network { path: path.to_owned(), kind });
        }
        if filesystem == statfs::TMPFS_MAGIC {
            tracing::warn!(data_dir = %path.display(), "the data directory is in memory (tmpfs): a reboot loses all jobs");
        }
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path.join("lock"))
            .map_err(failed("open the lock of"))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(DataDirError::InUse { path: path.to_owned() }),
            Err((_, error)) => Err(failed("lock")(error.into())),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The name of a filesystem that more than one machine may write to (statfs(2) and linux/magic.h).
fn network_filesystem(found: FsType) -> Option<&'static str> {
    const KINDS: [(i64, &str); 10] = [
        (0x6969, "nfs"),
        (0x517B, "smb"),
        (0xFF53_4D42, "cifs"),
        (0xFE53_4D42, "smb2"),
        (0x00C3_6400, "ceph"),
        (0x0BD0_0BD0, "lustre"),
        (0x4750_4653, "gpfs"),
        (0x1983_0326, "beegfs"),
        (0x5346_414F, "afs"),
        (0x7461_636F, "ocfs2"),
    ];
    // The type's width differs between C libraries; the numbers have 32 bits.
    let magic = i64::from(found.0 as u32);
    KINDS.into_iter().find(|(kind, _)| *kind == magic).map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_second_server_on_the_same_directory_is_refused_until_the_first_is_gone() {
        let place = tempfile::tempdir().expect("a directory");
        let path = place.path().join("data");
        let first = DataDir::claim(&path).expect("the first claim");
        assert!(matches!(DataDir::claim(&path), Err(DataDirError::InUse { .. })));
        drop(first);
        DataDir::claim(&path).expect("the claim after it");
    }

    #[test]
    fn the_directory_is_for_its_owner_alone() {
        let place = tempfile::tempdir().expect("a directory");
        let path = place.path().join("a/b");
        let claim = DataDir::claim(&path).expect("a claim");
        assert_eq!(std::fs::metadata(claim.path()).expect("metadata").mode() & 0o777, 0o700);
    }

    #[test]
    fn a_directory_that_others_may_write_to_is_refused_with_what_to_do() {
        let place = tempfile::tempdir().expect("a directory");
        std::fs::set_permissions(place.path(), std::fs::Permissions::from_mode(0o775)).expect("its mode is set");
        let refused = DataDir::claim(place.path()).expect_err("refused").to_string();
        assert!(refused.contains("chmod go-w"), "{refused}");
    }

    #[test]
    fn network_filesystems_are_known_by_their_magic_numbers() {
        assert_eq!(network_filesystem(statfs::NFS_SUPER_MAGIC), Some("nfs"));
        assert_eq!(network_filesystem(statfs::TMPFS_MAGIC), None);
    }
}
