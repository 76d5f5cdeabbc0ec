//! `taxiway config check` and `taxiway config show`

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::terminal::print;
use crate::config;

/// Check or show the configuration.
#[derive(Debug, Args)]
pub(super) struct Config {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Say whether the configuration can be used, and all that is wrong with it.
    Check(Source),
    /// Print the configuration as the service would use it, without secrets.
    Show {
        #[command(flatten)]
        source: Source,
        /// Print what an absent file means instead.
        #[arg(long)]
        defaults: bool,
    },
}

#[derive(Debug, Args)]
struct Source {
    /// Configuration file. Default: $TAXIWAY_CONFIG, /etc/taxiway/taxiway.toml or ~/.config/taxiway/taxiway.toml.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Config {
    pub(super) fn run(self) -> anyhow::Result<()> {
        match self.verb {
            Verb::Check(source) => {
                let (file, _) = source.read()?;
                print(&match file {
                    Some(file) => format!("{} can be used.\n", file.display()),
                    None => {
                        "There is no configuration file; the defaults and the environment can be used.\n".to_owned()
                    }
                })
            }
            Verb::Show { defaults: true, .. } => print(&config::show(&config::Config::default())?),
            Verb::Show { source, defaults: false } => print(&config::show(&source.read()?.1)?),
        }
    }
}

impl Source {
    fn read(&self) -> anyhow::Result<(Option<PathBuf>, config::Config)> {
        let file = config::config_file(self.config.as_deref())?;
        let config = config::read(file.as_deref(), &config::environment())?;
        Ok((file, config))
    }
}
