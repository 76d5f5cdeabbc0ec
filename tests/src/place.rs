//! A data directory, its configuration and its plugins.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::{Server, processes};

/// Where a service runs, has run or will run. When it goes, so do all processes of its jobs.
#[derive(Debug)]
pub struct Place {
    directory: tempfile::TempDir,
    data_dir: PathBuf,
    /// The program that runs here, when it is not the one under test itself.
    program: Option<PathBuf>,
    /// Further variables of the service.
    variables: Vec<(String, String)>,
}

impl Default for Place {
    fn default() -> Self {
        Self::new()
    }
}

impl Place {
    /// A place with an empty configuration and no plugins.
    #[must_use]
    pub fn new() -> Self {
        Self::with_data_dir("data")
    }

    /// The same with a data directory of this relative path.
    #[must_use]
    pub fn with_data_dir(path: &str) -> Self {
        let directory = tempfile::Builder::new().prefix("taxiway-").tempdir().expect("a temporary directory");
        let data_dir = directory.path().canonicalize().expect("it is there").join(path);
        // The service refuses a folder of plugins that others may write to.
        DirBuilder::new().mode(0o700).create(directory.path().join("plugins")).expect("a folder of plugins");
        fs::write(directory.path().join("taxiway.toml"), "").expect("a configuration");
        Self { directory, data_dir, program: None, variables: Vec::new() }
    }

    /// The text of `taxiway.toml`.
    #[must_use]
    pub fn config(self, text: &str) -> Self {
        fs::write(self.config_file(), text).expect("a configuration");
        self
    }

    /// Runs another program here: a copy, say, of the one under test.
    #[must_use]
    pub fn program(mut self, program: PathBuf) -> Self {
        self.program = Some(program);
        self
    }

    /// Gives the service another variable.
    #[must_use]
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn own_program(&self) -> Option<&Path> {
        self.program.as_deref()
    }

    pub(crate) fn variables(&self) -> impl Iterator<Item = (&str, &str)> {
        self.variables.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Drops a plugin's manifest in.
    #[must_use]
    pub fn manifest(self, name: &str, text: &str) -> Self {
        self.write_manifest(name, text);
        self
    }

    /// Drops a component in.
    #[must_use]
    pub fn component(self, name: &str, component: &[u8]) -> Self {
        self.write_component(name, component);
        self
    }

    /// The same while the service runs.
    pub fn write_manifest(&self, name: &str, text: &str) {
        fs::write(self.plugins_dir().join(format!("{name}.toml")), text).expect("a manifest");
    }

    /// The same while the service runs; whole or not at all, as everybody should.
    pub fn write_component(&self, name: &str, component: &[u8]) {
        let partial = self.path().join(format!("{name}.partial"));
        fs::write(&partial, component).expect("a component");
        fs::rename(partial, self.plugins_dir().join(format!("{name}.wasm"))).expect("it can be dropped in");
    }

    /// Takes a plugin out, component and manifest.
    pub fn remove_plugin(&self, name: &str) {
        let removed = ["toml", "wasm"].map(|kind| fs::remove_file(self.plugins_dir().join(format!("{name}.{kind}"))));
        assert!(removed.iter().any(Result::is_ok), "there was a plugin `{name}`");
    }

    /// Starts the service here and waits until it accepts requests.
    pub async fn start(self) -> Server {
        Server::start(self, &[]).await
    }

    /// The same with further arguments on its command line.
    pub async fn start_with(self, arguments: &[&str]) -> Server {
        Server::start(self, arguments).await
    }

    /// The temporary directory itself, for whatever a test needs.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The service's data directory.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Where jobs have their directories.
    #[must_use]
    pub fn jobs_dir(&self) -> PathBuf {
        self.data_dir.join("jobs")
    }

    /// The folder of plugins.
    #[must_use]
    pub fn plugins_dir(&self) -> PathBuf {
        self.path().join("plugins")
    }

    /// The configuration.
    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        self.path().join("taxiway.toml")
    }

    /// What the service logs, over all its starts.
    #[must_use]
    pub fn log_file(&self) -> PathBuf {
        self.path().join("service.log")
    }

    /// The administrator's token.
    #[must_use]
    pub fn token(&self) -> String {
        let text = fs::read_to_string(self.data_dir.join("token")).expect("the first start writes a token");
        text.trim().to_owned()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.log_file()).unwrap_or_default();
            eprintln!("--- the service's log\n{log}---");
        }
        processes::end_jobs_in(&self.jobs_dir());
    }
}
