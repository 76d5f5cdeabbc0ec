//! Compiled code on disk, by content, wasmtime version and settings.

use super::COMPILER_ARGUMENT;
use super::child::TOO_LARGE;
use super::turns::{First, Turn, Turns};
use crate::folder;
use crate::limits::Limits;
use crate::quantity::{show_duration, show_size};
use crate::text;
use std::fs::{File, Metadata};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use wasmtime::Engine;
use wasmtime::component::Component;

/// Compiled components kept: some versions of some dozen plugins.
const MOST_FILES: usize = 256;

/// Bytes of compiled code kept (4 GiB): some versions of a dozen Python plugins. Those that were not loaded for the longest time go.
const MOST_BYTES: u64 = 4 << 30;

/// The most that a component may come to as compiled code: so many times its own size, and what a small one may (4 MiB). Components
/// in Rust come to three times their size. What is loaded is mapped, but its tables are read into memory, where they are some ten
/// times as large: a component of 340 KB that makes 190 instances with 20,000 imports each comes to 8 MiB.
const MOST_TIMES: u64 = 10;
const MOST_OF_A_SMALL_ONE: u64 = 4 << 20;

/// The cache, and the one compiler at a time.
pub struct Cache {
    folder: PathBuf,
    compiler: PathBuf,
    engine: Engine,
    limits: Arc<Limits>,
    /// Code from another engine or other settings has another name.
    settings: u64,
    turns: Arc<Turns>,
    /// Compilers started so far: each has files of its own, since those of the one before are removed when there is time.
    started: AtomicU64,
}

/// Why there is no compiled code.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The compiler refuses the component.
    #[error("{0}")]
    Refused(String),
    /// The compiler was ended at its time limit.
    #[error("compiling took longer than {}", show_duration(*.0))]
    TooSlow(Duration),
    /// The compiler died, most likely of its memory limit.
    #[error("the compiler ended with {status} (it may use {}){said}", show_size(*.memory))]
    Died {
        /// How the process ended.
        status: String,
        /// Its memory limit in bytes.
        memory: u64,
        /// What it said before, if anything.
        said: String,
    },
    /// There would be too much of it.
    #[error("its compiled code has {size}, over the {} that a component of its size may come to", show_size(*.limit))]
    TooLarge {
        /// What the compiler came to.
        size: String,
        /// The limit in bytes.
        limit: u64,
    },
    /// A file or process could not be handled.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
}

fn io(what: &'static str) -> impl FnOnce(std::io::Error) -> CacheError {
    move |source| CacheError::Io { what, source }
}

impl Cache {
    /// Opens the folder, which must be the service's alone; makes it if it is missing.
    ///
    /// # Errors
    /// When it cannot be made, or others can write to it.
    pub fn open(
        folder: &Path,
        compiler: &Path,
        engine: Engine,
        limits: Arc<Limits>,
    ) -> Result<Cache, folder::FolderError> {
        folder::private(folder)?;
        let mut hasher = DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hasher);
        let cache = Cache {
            folder: folder.to_owned(),
            compiler: compiler.to_owned(),
            engine,
            limits,
            settings: hasher.finish(),
            turns: Turns::new(),
            started: AtomicU64::new(0),
        };
        sweep(&cache.folder, cache.limits.compile_timeout, MOST_FILES, MOST_BYTES);
        Ok(cache)
    }

    /// The compiled component with this digest, if it is there.
    pub async fn find(&self, sha256: &str) -> Option<Component> {
        let path = self.path(sha256);
        let engine = self.engine.clone();
        // A failed or panicked read is a miss: it is compiled again.
        tokio::task::spawn_blocking(move || load(&engine, &path)).await.ok().flatten()
    }

    /// Lets one load compile before those that have no such right.
    pub fn first(&self) -> First {
        self.turns.first()
    }

    /// Waits until no other component is being compiled.
    pub async fn turn(&self, first: Option<&First>) -> Turn<'_> {
        self.turns.take(first).await
    }

    /// Compiles the component with this digest.
    ///
    /// Cancel-safe: dropping the future ends the compiler.
    pub async fn compile(&self, _turn: &Turn<'_>, sha256: &str, component: Vec<u8>) -> Result<Component, CacheError> {
        let (process, number) = (std::process::id(), self.started.fetch_add(1, Ordering::Relaxed));
        let file = |extension| Leftover(self.folder.join(format!("{sha256}.{process}.{number}.{extension}")));
        let (input, output) = (file("wasm"), file("new"));
        let largest = (component.len() as u64).saturating_mul(MOST_TIMES).max(MOST_OF_A_SMALL_ONE);
        let (folder, from, to) = (self.folder.clone(), input.0.clone(), output.0.clone());
        tokio::task::spawn_blocking(move || {
            // It may have been deleted since it was opened.
            folder::private(&folder).map_err(std::io::Error::other)?;
            // An earlier process had the same number, if it was killed.
            remove(&to)?;
            remove(&from)?;
            let mut file = File::options().write(true).create_new(true).mode(0o600).open(&from)?;
            std::io::Write::write_all(&mut file, &component)
        })
        .await
        .map_err(|error| io("hand the component to the compiler")(std::io::Error::other(error)))?
        .map_err(io("hand the component to the compiler"))?;

        self.run_compiler(&input.0, &output.0, largest).await?;
        let (made, path, folder, timeout) =
            (output.0.clone(), self.path(sha256), self.folder.clone(), self.limits.compile_timeout);
        tokio::task::spawn_blocking(move || {
            std::fs::rename(made, path)?;
            sweep(&folder, timeout, MOST_FILES, MOST_BYTES);
            Ok(())
        })
        .await
        .unwrap_or_else(|error| Err(std::io::Error::other(error)))
        .map_err(io("keep the compiled code"))?;
        self.find(sha256).await.ok_or_else(|| {
            CacheError::Refused("the compiled code does not load; the service's log says more".to_owned())
        })
    }

    async fn run_compiler(&self, input: &Path, output: &Path, largest: u64) -> Result<(), CacheError> {
        let limit = self.limits.compile_timeout;
        let mut child = Command::new(&self.compiler)
            .arg(COMPILER_ARGUMENT)
            .arg(input)
            .arg(output)
            .arg(self.limits.compile_memory.to_string())
            // Code generation runs on several cores: processor time goes by faster than the wall clock's.
            .arg((limit.as_secs().max(1) * 4).to_string())
            .arg(largest.to_string())
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(io("start the compiler"))?;
        let mut said = Vec::new();
        let stderr = child.stderr.take();
        let finished = async {
            if let Some(stderr) = stderr {
                // A refusal is some hundred bytes; a stranger's names may make it longer.
                stderr.take(16 << 10).read_to_end(&mut said).await?;
            }
            child.wait().await
        };
        let status = match tokio::time::timeout(limit, finished).await {
            Ok(status) => status.map_err(io("wait for the compiler"))?,
            Err(_) => return Err(CacheError::TooSlow(limit)),
        };
        let said = text::clean(String::from_utf8_lossy(&said).trim(), 1000);
        match status.code() {
            Some(0) => Ok(()),
            Some(1) if !said.is_empty() => Err(CacheError::Refused(said)),
            Some(status) if status == i32::from(TOO_LARGE) => Err(CacheError::TooLarge { size: said, limit: largest }),
            _ => Err(CacheError::Died {
                status: status.to_string(),
                memory: self.limits.compile_memory,
                said: if said.is_empty() { said } else { format!(": {said}") },
            }),
        }
    }

    fn path(&self, sha256: &str) -> PathBuf {
        self.folder.join(format!("{sha256}-{:016x}.cwasm", self.settings))
    }
}

/// Removes what an earlier process left half done, and of the compiled code what was not loaded for the longest time, so that no
/// more than so many files and bytes stay; the newest stays whatever its size. Best effort.
fn sweep(folder: &Path, compile_timeout: Duration, most_files: usize, most_bytes: u64) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    let mut kept: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
    for entry in entries.flatten() {
        let (path, data) = (entry.path(), entry.metadata());
        let size = data.as_ref().map_or(0, Metadata::len);
        let used = data.and_then(|data| data.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        match path.extension().and_then(|extension| extension.to_str()) {
            // Younger ones may be in use: `taxiway plugin test` shares the folder with the service.
            Some("wasm" | "new") if used + compile_timeout < SystemTime::now() => drop(std::fs::remove_file(&path)),
            Some("cwasm") => kept.push((used, size, path)),
            _ => {}
        }
    }
    kept.sort();
    let mut bytes = 0;
    for (place, (_, size, path)) in kept.into_iter().rev().enumerate() {
        bytes += size;
        if place > 0 && (place >= most_files || bytes > most_bytes) {
            drop(std::fs::remove_file(path));
        }
    }
}

fn load(engine: &Engine, path: &Path) -> Option<Component> {
    if !path.exists() {
        return None;
    }
    // SAFETY: the file must be what `precompile_component` of this engine made, unchanged while it is mapped. The folder
    // is the service's own with mode 0700, checked when the cache was opened; a file gets this name only by a rename,
    // after the compiler's fsync, and is never written again. The header's version and settings are checked by wasmtime.
    match unsafe { Component::deserialize_file(engine, path) } {
        Ok(component) => {
            // What is loaded is swept last. One that keeps its time goes earlier and is compiled again.
            let used = File::open(path).and_then(|file| file.set_modified(SystemTime::now()));
            drop(used);
            Some(component)
        }
        Err(error) => {
            tracing::warn!(path = %path.display(), error = format!("{error:#}"), "cached code does not load and is compiled again");
            None
        }
    }
}

fn remove(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A file that is gone when the work on it is over, however it ended.
struct Leftover(PathBuf);

impl Drop for Leftover {
    fn drop(&mut self) {
        let path = std::mem::take(&mut self.0);
        // Renamed away, or swept at the next start.
        let remove = move || drop(std::fs::remove_file(path));
        match tokio::runtime::Handle::try_current() {
            // Dropped on a thread that answers requests: it is up to a gigabyte.
            Ok(runtime) => drop(runtime.spawn_blocking(remove)),
            Err(_) => remove(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_compiled_code_what_was_not_loaded_for_the_longest_time_is_swept() {
        let folder = tempfile::tempdir().unwrap();
        let there = || {
            let mut names: Vec<String> = std::fs::read_dir(folder.path())
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        };
        let put = |name: &str, size: usize, age: u64| {
            let path = folder.path().join(name);
            std::fs::write(&path, vec![0; size]).unwrap();
            let used = SystemTime::now() - Duration::from_secs(age);
            File::options().write(true).open(path).unwrap().set_modified(used).unwrap();
        };
        let timeout = Duration::from_secs(300);
        put("a.cwasm", 10, 9);
        put("b.cwasm", 30, 7);
        put("c.cwasm", 50, 5);
        put("d.cwasm", 10, 3);
        put("fresh.new", 10, 100);
        put("stale.wasm", 10, 1000);
        sweep(folder.path(), timeout, 4, 100);
        assert_eq!(there(), ["a.cwasm", "b.cwasm", "c.cwasm", "d.cwasm", "fresh.new"]);
        sweep(folder.path(), timeout, 4, 70);
        assert_eq!(there(), ["c.cwasm", "d.cwasm", "fresh.new"]);
        sweep(folder.path(), timeout, 1, 70);
        assert_eq!(there(), ["d.cwasm", "fresh.new"]);
        sweep(folder.path(), timeout, 1, 5);
        assert_eq!(there(), ["d.cwasm", "fresh.new"], "the newest is in use");
    }
}
