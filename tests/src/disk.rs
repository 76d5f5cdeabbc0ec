//! Disks that refuse: one that fails as a test says, under the real service, and a real one that is small.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Place;

/// What the disk does with the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Nothing more can be written: it is full (`ENOSPC`).
    Full,
    /// What was written does not get through to it (`EIO` of an fsync).
    Broken,
}

/// The disk under a service's database. It fails and recovers while the service runs.
#[derive(Debug)]
pub struct Disk {
    control: PathBuf,
}

impl Disk {
    /// The place with such a disk, which works until it is told otherwise. Built with the C compiler that SQLite needs as well.
    ///
    /// # Panics
    /// When there is no C compiler.
    #[must_use]
    pub fn under(place: Place) -> (Self, Place) {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("disk/refuse.c");
        let (library, control) = (place.path().join("refuse.so"), place.path().join("disk-refuses"));
        let built =
            Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).args([&library, &source]).arg("-ldl").output();
        let built = built.expect("there is a C compiler, as SQLite needs one");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        let text = |path: &Path| path.to_str().expect("a path of ours").to_owned();
        let place = place.variable("LD_PRELOAD", &text(&library)).variable("DISK_REFUSES", &text(&control));
        (Self { control }, place)
    }

    /// From now on it refuses.
    pub fn refuse(&self, how: Refusal) {
        let words = match how {
            Refusal::Full => format!("write {}", libc::ENOSPC),
            Refusal::Broken => format!("sync {}", libc::EIO),
        };
        // Whole or not at all: the service reads it at any moment.
        let partial = self.control.with_extension("partial");
        std::fs::write(&partial, words).expect("a file");
        std::fs::rename(partial, &self.control).expect("it can be moved");
    }

    /// From now on it works.
    pub fn recover(&self) {
        std::fs::remove_file(&self.control).expect("it refused before");
    }
}

/// A filesystem of its own that is small (tmpfs(5)); it goes with this.
#[derive(Debug)]
pub struct SmallDisk {
    directory: tempfile::TempDir,
}

impl SmallDisk {
    /// One of so many MiB; none where nobody may mount anything, as in most containers. That is said on standard error.
    #[must_use]
    pub fn mount(mebibytes: u32) -> Option<Self> {
        let directory = tempfile::Builder::new().prefix("taxiway-small-").tempdir().expect("a temporary directory");
        let options = format!("size={mebibytes}m,mode=0700");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(directory.path()).output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self { directory }),
            Ok(output) => {
                eprintln!("NOT TESTED: no small disk can be mounted here: {}", String::from_utf8_lossy(&output.stderr));
                None
            }
            Err(error) => {
                eprintln!("NOT TESTED: no small disk can be mounted here: {error}");
                None
            }
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Fills it to the last byte; removing the file that is returned makes room again.
    ///
    /// # Panics
    /// When that fails in another way than by its being full.
    #[must_use]
    pub fn fill(&self) -> PathBuf {
        let path = self.path().join("filler");
        let mut file = std::fs::File::create(&path).expect("a file");
        for size in [64 << 10, 4 << 10, 1] {
            let block = vec![0; size];
            let full = loop {
                if let Err(error) = file.write_all(&block) {
                    break error;
                }
            };
            assert_eq!(full.kind(), std::io::ErrorKind::StorageFull, "{full}");
        }
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a process of a test that failed may still be there.
        if let Err(error) = Command::new("umount").arg("-l").arg(self.directory.path()).status() {
            eprintln!("{} cannot be unmounted: {error}", self.directory.path().display());
        }
    }
}
