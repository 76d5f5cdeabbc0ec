//! `taxiway plugin`: look at the plugins of a service, and write, check and try out your own.

mod check;
mod list;
mod new;
mod rehearse;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};
use taxiway_plugin_host::{OpenError, Plugin as Loaded, PluginStatus};

use super::{Connect, client::Client, exit};
use crate::config::{self, Settings};

/// Look at the plugins, or write, check and try out your own.
#[derive(Debug, Args)]
pub(super) struct Plugin {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the plugins of the service and how they stand.
    List(list::List),
    /// Say whether a plugin would be in force, and if not, why and what to do.
    Check(check::Check),
    /// Have a plugin judge and rewrite a job as the service would, and show all it said, changed and cost.
    Test(rehearse::Test),
    /// Begin a plugin in Rust.
    New(new::New),
}

impl Plugin {
    /// Only `list` asks a service.
    pub(super) async fn run(self, connect: &Connect, json: bool) -> anyhow::Result<ExitCode> {
        match self.verb {
            Verb::List(list) => list.run(&Client::new(connect)?, json).await.map(|()| ExitCode::SUCCESS),
            Verb::Check(check) => check.run(connect, json).await,
            Verb::Test(test) => test.run(connect, json).await,
            Verb::New(new) => new.run(json).map(|()| ExitCode::SUCCESS),
        }
    }
}

/// A plugin that lies in a file.
#[derive(Debug, Args)]
struct Source {
    /// The component (.wasm), or the manifest (.toml) that stands beside it or names it.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The manifest. Default: the .toml of the same name beside the component, if there is one.
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,
    /// Configuration file of the service, for its limits and profiles. Default: as for `taxiway serve`.
    #[arg(long, value_name = "FILE")]
    server_config: Option<PathBuf>,
}

impl Source {
    /// What the service would run with.
    fn settings(&self, connect: &Connect) -> anyhow::Result<Settings> {
        let config_file = config::config_file(self.server_config.as_deref())?;
        let config = config::read(config_file.as_deref(), &config::environment())?;
        let data_dir = config::data_dir(connect.data_dir.as_deref())?;
        Ok(Settings { config, config_file, data_dir, no_auth: false })
    }

    /// Loads it as the service would. Compiled code is kept for the next time.
    async fn open(&self, settings: &Settings) -> anyhow::Result<Result<(Loaded, PluginStatus), OpenError>> {
        let options = taxiway_plugin_host::Options {
            plugins_dir: settings.plugins_dir(),
            state_dir: settings.data_dir.clone(),
            cache_dir: cache_dir()?,
            ca_file: settings.config.plugins.ca_file.clone(),
            limits: settings.config.plugins.limits.clone(),
            bundled: crate::bundled::BUNDLED,
            compiler: std::env::current_exe().context("cannot find the taxiway program itself")?,
        };
        Ok(taxiway_plugin_host::open(options, &self.file, self.manifest.as_deref()).await)
    }
}

/// `$XDG_CACHE_HOME/taxiway` or `~/.cache/taxiway`: not the service's own, which may be another user's.
fn cache_dir() -> anyhow::Result<PathBuf> {
    let named = |variable: &str| std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = named("XDG_CACHE_HOME").or_else(|| Some(named("HOME")?.join(".cache")));
    Ok(cache.context("nowhere to keep compiled code: set XDG_CACHE_HOME or HOME")?.join("taxiway/plugins"))
}

/// The exit status of a plugin that does not do its work.
fn unsound() -> ExitCode {
    ExitCode::from(exit::FAILED)
}
