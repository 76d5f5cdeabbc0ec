//! The plugins folder: whose it is, and what lies in it.

use nix::unistd::{getegid, geteuid};
use std::collections::BTreeMap;
use std::fs::{DirBuilder, Metadata};
use std::io::Read;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Why a folder cannot be trusted or used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// It is missing and cannot be made, or not readable.
    #[error("cannot use the folder {path}: {source}")]
    Io {
        /// The folder.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// It is something else.
    #[error("{0} is not a folder")]
    NotAFolder(PathBuf),
    /// Another user owns it.
    #[error(
        "the folder {path} belongs to user {owner}; it must belong to the service's user or to root: chown {} {path}",
        geteuid()
    )]
    Owner {
        /// The folder.
        path: PathBuf,
        /// Its owner's number.
        owner: u32,
    },
    /// Others can put files into it.
    #[error("the folder {path} can be written by others, who could put code into the service: chmod go-w {path}")]
    Writable {
        /// The folder.
        path: PathBuf,
    },
}

/// Makes the folder if it is missing (0700), and checks that nobody else can change what lies in it.
///
/// # Errors
/// With the command that mends it.
pub fn made(path: &Path) -> Result<(), FolderError> {
    if !path.exists() {
        let io = |source| FolderError::Io { path: path.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io)?;
    }
    trusted(path)
}

/// Checks that nobody else can change what lies in the folder.
///
/// # Errors
/// With the command that mends it.
pub fn trusted(path: &Path) -> Result<(), FolderError> {
    let io = |source| FolderError::Io { path: path.to_owned(), source };
    let data = std::fs::metadata(path).map_err(io)?;
    if !data.is_dir() {
        return Err(FolderError::NotAFolder(path.to_owned()));
    }
    if data.uid() != 0 && data.uid() != geteuid().as_raw() {
        return Err(FolderError::Owner { path: path.to_owned(), owner: data.uid() });
    }
    if writable_by_others(&data) {
        return Err(FolderError::Writable { path: path.to_owned() });
    }
    Ok(())
}

/// Makes the folder if it is missing, checks that it is the service's own, and shuts everybody else out (0700).
///
/// # Errors
/// With the command that mends it.
pub fn private(path: &Path) -> Result<(), FolderError> {
    made(path)?;
    let io = |source| FolderError::Io { path: path.to_owned(), source };
    let data = std::fs::metadata(path).map_err(io)?;
    if data.uid() != geteuid().as_raw() {
        return Err(FolderError::Owner { path: path.to_owned(), owner: data.uid() });
    }
    if data.mode() & 0o077 != 0 {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o700)).map_err(io)?;
    }
    Ok(())
}

/// Whether somebody beside the owner can write. The group counts as others unless it is the service's own: many systems
/// give every user a group of its own and let that group write.
fn writable_by_others(data: &Metadata) -> bool {
    data.mode() & 0o002 != 0 || (data.mode() & 0o020 != 0 && data.gid() != getegid().as_raw())
}

/// What tells one state of a file from another without reading it. A replacement has another inode, a change another
/// change time, which nobody can set back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Stamp {
    /// Of the file, and of the link itself when it leads nowhere or to what may not be looked at: that is a file which cannot be
    /// read, not one that is not there. None when nothing has this name.
    pub fn of(path: &Path) -> Option<Stamp> {
        let data = std::fs::metadata(path).or_else(|_| std::fs::symlink_metadata(path)).ok()?;
        Some(Stamp { inode: data.ino(), size: data.size(), changed: (data.ctime(), data.ctime_nsec()) })
    }

    /// Of a directory, whatever happens in it.
    pub fn of_directory(path: &Path) -> Option<Stamp> {
        Stamp::of(path).map(|stamp| Stamp { size: 0, changed: (0, 0), ..stamp })
    }
}

/// The components and manifests of a folder, by plugin name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// `NAME.wasm`.
    pub components: BTreeMap<String, Stamp>,
    /// `NAME.toml`.
    pub manifests: BTreeMap<String, Stamp>,
    /// Those of them that are symbolic links.
    pub links: Vec<PathBuf>,
}

/// Lists the folder. Hidden files, and names that no plugin can have, are left out.
///
/// # Errors
/// When the folder cannot be read.
pub fn list(folder: &Path) -> std::io::Result<Listing> {
    let mut listing = Listing::default();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        let (Some(stem), Some(extension)) =
            (path.file_stem().and_then(|s| s.to_str()), path.extension().and_then(|e| e.to_str()))
        else {
            continue;
        };
        let kind = match extension {
            "wasm" => &mut listing.components,
            "toml" => &mut listing.manifests,
            _ => continue,
        };
        // None when it went away since.
        let Some(stamp) = Stamp::of(&path) else { continue };
        if is_plugin_name(stem) {
            kind.insert(stem.to_owned(), stamp);
            if entry.file_type()?.is_symlink() {
                listing.links.push(path);
            }
        } else if !stem.starts_with('.') {
            tracing::warn!(path = %path.display(), "not a plugin: a name has letters, digits, `-`, `_` and `.`, at most 64");
        }
    }
    Ok(listing)
}

/// Letters, digits, `-`, `_` and `.`, not at the start, at most 64 bytes.
pub fn is_plugin_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 64
        && !name.starts_with(['.', '-'])
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// Why a file of the folder cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system refuses.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A pipe, a device, a folder.
    #[error("{0} is not a plain file")]
    NotAFile(PathBuf),
    /// Others can change it.
    #[error("{0} can be changed by other users: chown it to the service's user, chmod go-w {0}")]
    Untrusted(PathBuf),
    /// It is over the limit.
    #[error("{path} has {size} bytes; at most {limit} are read")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
}

/// Reads a file that nobody else can change, up to a limit.
///
/// # Errors
/// When it is not such a file.
pub fn read(path: &Path, limit: u64) -> Result<Vec<u8>, FileError> {
    let io = |source| FileError::Io { path: path.to_owned(), source };
    // Not blocking: opening a pipe would wait for its writer.
    let file = std::fs::File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(io)?;
    let data = file.metadata().map_err(io)?;
    if !data.is_file() {
        return Err(FileError::NotAFile(path.to_owned()));
    }
    if writable_by_others(&data) || (data.uid() != 0 && data.uid() != geteuid().as_raw()) {
        return Err(FileError::Untrusted(path.to_owned()));
    }
    let too_large = |size| FileError::TooLarge { path: path.to_owned(), size, limit };
    if data.len() > limit {
        return Err(too_large(data.len()));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(data.len()).unwrap_or(0));
    // It may grow while it is read.
    file.take(limit + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > limit {
        return Err(too_large(bytes.len() as u64));
    }
    Ok(bytes)
}
