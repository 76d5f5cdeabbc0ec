//! `taxiway serve`

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::config::{self, Settings};

/// Run the service.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  taxiway serve
  taxiway serve --data-dir /var/lib/taxiway --listen 127.0.0.1:9000
The first start writes the administrator's token to the file `token` in the data directory. TAXIWAY_LOG sets what is logged
to standard error, for example TAXIWAY_LOG=debug.")]
pub(super) struct Serve {
    /// Configuration file. Default: $TAXIWAY_CONFIG, /etc/taxiway/taxiway.toml or ~/.config/taxiway/taxiway.toml.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Address of the API and the dashboard. Port 0 takes a free one.
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
    /// The watched folder of plugins. Default: `plugins` in the data directory.
    #[arg(long, value_name = "DIR")]
    plugins_dir: Option<PathBuf>,
    /// Ask nobody for a token. Works on loopback only.
    #[arg(long)]
    no_auth: bool,
}

impl Serve {
    pub(super) fn run(self, data_dir: Option<&Path>) -> anyhow::Result<()> {
        log_to_stderr();
        let settings = self.settings(data_dir)?;
        let runtime =
            tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start the runtime")?;
        runtime.block_on(async {
            let stop = CancellationToken::new();
            stop_on_signals(stop.clone())?;
            crate::service::serve(settings, stop).await
        })
    }

    fn settings(self, data_dir: Option<&Path>) -> anyhow::Result<Settings> {
        let config_file = config::config_file(self.config.as_deref())?;
        let mut config = config::read(config_file.as_deref(), &config::environment())?;
        if let Some(listen) = self.listen {
            config.server.listen = listen;
        }
        if let Some(plugins_dir) = self.plugins_dir {
            config.plugins.dir = Some(std::path::absolute(plugins_dir).context("--plugins-dir")?);
        }
        Ok(Settings { config, config_file, data_dir: config::data_dir(data_dir)?, no_auth: self.no_auth })
    }
}

fn log_to_stderr() {
    let filter = EnvFilter::try_from_env("TAXIWAY_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colours)
        // A line that cannot be written, to a file on a full disk, would have it print that to standard error and panic.
        .log_internal_errors(false);
    // Already set only when a test starts a second service in one process.
    let _ = subscriber.try_init();
}

/// Cancels `stop` at the first SIGTERM or SIGINT. The second one ends the process at once: that loses nothing that was
/// acknowledged, and jobs go on in any case.
fn stop_on_signals(stop: CancellationToken) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    tokio::spawn(async move {
        for first in [true, false] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if first {
                tracing::info!("stopping; jobs that run go on");
                stop.cancel();
            }
        }
        std::process::exit(130);
    });
    Ok(())
}
