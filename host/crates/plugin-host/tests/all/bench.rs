//! A plugin host in temporary folders.

use serde_json::json;
use std::path::PathBuf;
use std::time::Duration;
use taxiway_plugin_host::{
    Context, Hook, JobView, Limits, Options, Plugin, PluginHost, PluginState, PluginStatus, Stage,
};
use tempfile::TempDir;

/// Longer than anything here takes on a slow machine: a test that waits so long has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Bench {
    pub folder: TempDir,
    pub cache: TempDir,
    pub limits: Limits,
}

impl Bench {
    pub fn new() -> Bench {
        let limits = Limits { timeout: Duration::from_millis(500), ..Limits::default() };
        Bench { folder: tempfile::tempdir().unwrap(), cache: tempfile::tempdir().unwrap(), limits }
    }

    pub fn with(file: &str, content: impl AsRef<[u8]>) -> Bench {
        let bench = Bench::new();
        bench.put(file, content);
        bench
    }

    /// Puts a file into the folder in one step.
    pub fn put(&self, file: &str, content: impl AsRef<[u8]>) {
        let aside = self.cache.path().join(format!("aside-{file}"));
        std::fs::write(&aside, content).unwrap();
        std::fs::rename(aside, self.path(file)).unwrap();
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    pub fn options(&self) -> Options {
        Options {
            plugins_dir: self.folder.path().to_owned(),
            state_dir: self.cache.path().to_owned(),
            cache_dir: self.cache.path().join("cache"),
            ca_file: None,
            limits: self.limits.clone(),
            bundled: &[],
            compiler: env!("CARGO_BIN_EXE_plugin-compiler-for-tests").into(),
        }
    }

    /// A host whose first scan is done.
    pub async fn host(&self) -> PluginHost {
        let host = PluginHost::start(self.options()).await.unwrap();
        tokio::time::timeout(PATIENCE, host.ready()).await.expect("the first scan ends");
        host
    }

    /// The one plugin of a host, which must be in force.
    pub async fn plugin(&self) -> (PluginHost, Plugin) {
        let host = self.host().await;
        let status = &host.plugins()[0];
        assert_eq!(status.state, PluginState::InForce, "{:?}", status.error);
        let plugin = host.plugin(&status.name).unwrap();
        (host, plugin)
    }
}

/// Waits until the status of a plugin, or its absence, is as wanted.
pub async fn until(host: &PluginHost, name: &str, wanted: impl Fn(Option<&PluginStatus>) -> bool) {
    let mut changes = host.status_changes();
    let wait = async {
        loop {
            changes.borrow_and_update();
            if wanted(host.plugins().iter().find(|status| status.name == name)) {
                return;
            }
            changes.changed().await.unwrap();
        }
    };
    if tokio::time::timeout(PATIENCE, wait).await.is_err() {
        panic!("never came: {:#?}", host.plugins());
    }
}

pub fn validators(host: &PluginHost) -> Vec<Plugin> {
    host.in_force(Hook::Validate, Some(Stage::Submit), None)
}

pub fn job() -> JobView {
    JobView {
        id: "job-1".into(),
        name: "lora".into(),
        attempt: 1,
        config: json!({"train": {"lr": 0.1}}),
        details: json!({}),
    }
}

pub fn submission() -> Context {
    Context { stage: Stage::Submit, dry_run: false, gpus: Vec::new(), details: json!({}) }
}
