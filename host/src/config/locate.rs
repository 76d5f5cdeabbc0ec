//! Where the configuration and the data lie.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::Config;

/// Where a system-wide service puts its socket, for clients that are told nothing else.
pub const SYSTEM_SOCKET: &str = "/run/taxiway/taxiway.sock";

/// Why the configuration file or the data directory cannot be found.
#[derive(Debug, thiserror::Error)]
pub enum LocateError {
    /// A file that was named is not there.
    #[error("there is no configuration file {} (named by {named_by})", path.display())]
    NoSuchFile {
        /// The path that was named.
        path: PathBuf,
        /// Where it was named.
        named_by: &'static str,
    },
    /// Nothing says where the data should lie.
    #[error("nowhere to keep the data: set --data-dir, TAXIWAY_DATA_DIR, XDG_STATE_HOME or HOME")]
    NoDataDir,
}

/// What the service runs with: the configuration and what only the command line decides.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The configuration, with the command line's `--listen` and `--plugins-dir` in it.
    pub config: Config,
    /// The file it was read from.
    pub config_file: Option<PathBuf>,
    /// The data directory, an absolute path.
    pub data_dir: PathBuf,
    /// Whether everybody who can connect is an administrator (`--no-auth`).
    pub no_auth: bool,
}

impl Settings {
    /// The database's file.
    #[must_use]
    pub fn database(&self) -> PathBuf {
        self.data_dir.join("taxiway.db")
    }

    /// Holds a directory for each job.
    #[must_use]
    pub fn jobs_dir(&self) -> PathBuf {
        self.data_dir.join("jobs")
    }

    /// The watched folder of plugins.
    #[must_use]
    pub fn plugins_dir(&self) -> PathBuf {
        self.config.plugins.dir.clone().unwrap_or_else(|| self.data_dir.join("plugins"))
    }

    /// Compiled plugins.
    #[must_use]
    pub fn cache_dir(&self) -> PathBuf {
        self.data_dir.join("cache")
    }

    /// The unix socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.config.server.socket.clone().unwrap_or_else(|| self.data_dir.join("taxiway.sock"))
    }

    /// The file with the administrator's token.
    #[must_use]
    pub fn token_file(&self) -> PathBuf {
        self.data_dir.join("token")
    }
}

/// The configuration file: `named` (`--config`), `$TAXIWAY_CONFIG`, `/etc/taxiway/taxiway.toml`, or `taxiway/taxiway.toml` in
/// `$XDG_CONFIG_HOME` (`~/.config`). None when there is none; one that was named must be there.
///
/// # Errors
/// [`LocateError::NoSuchFile`].
pub fn config_file(named: Option<&Path>) -> Result<Option<PathBuf>, LocateError> {
    let variable = std::env::var_os("TAXIWAY_CONFIG").filter(|value| !value.is_empty()).map(PathBuf::from);
    for (path, named_by) in [(named.map(Path::to_owned), "--config"), (variable, "TAXIWAY_CONFIG")] {
        match path {
            Some(path) if path.exists() => return Ok(Some(path)),
            Some(path) => return Err(LocateError::NoSuchFile { path, named_by }),
            None => {}
        }
    }
    let home = directory("XDG_CONFIG_HOME").or_else(|| Some(directory("HOME")?.join(".config")));
    let places = [Some(PathBuf::from("/etc")), home];
    Ok(places.into_iter().flatten().map(|place| place.join("taxiway/taxiway.toml")).find(|path| path.exists()))
}

/// The data directory, absolute: `named` (`--data-dir`), `$TAXIWAY_DATA_DIR`, `$XDG_STATE_HOME/taxiway`, or
/// `~/.local/state/taxiway`. It need not be there yet.
///
/// # Errors
/// [`LocateError::NoDataDir`].
pub fn data_dir(named: Option<&Path>) -> Result<PathBuf, LocateError> {
    let variable = std::env::var_os("TAXIWAY_DATA_DIR").filter(|value| !value.is_empty()).map(PathBuf::from);
    let found = named
        .map(Path::to_owned)
        .or(variable)
        .or_else(|| Some(directory("XDG_STATE_HOME")?.join("taxiway")))
        .or_else(|| Some(directory("HOME")?.join(".local/state/taxiway")))
        .ok_or(LocateError::NoDataDir)?;
    // Only an empty path or a lost working directory has no absolute form.
    std::path::absolute(found).map_err(|_| LocateError::NoDataDir)
}

/// The directory that a variable names. The XDG Base Directory Specification has relative paths ignored.
fn directory(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).filter(|value: &OsString| Path::new(value).is_absolute()).map(PathBuf::from)
}
