//! `taxiway gc` and `taxiway backup`

use std::path::{Path, PathBuf};

use clap::Args;

use super::client::Client;
use super::terminal::{print, print_json};
use crate::{config, store};

/// Remove now what was kept long enough.
#[derive(Debug, Args)]
pub(super) struct Gc {}

impl Gc {
    pub(super) async fn run(self, client: &Client, json: bool) -> anyhow::Result<()> {
        let removed = client.collect().await?;
        if json {
            return print_json(&removed);
        }
        print(&format!("removed {} jobs, {} logs ({} bytes)\n", removed.jobs, removed.logs, removed.log_bytes))
    }
}

/// Copy the database.
#[derive(Debug, Args)]
#[command(after_help = "\
The copy is the database at one moment, also while the service runs and jobs are submitted. It holds jobs, their history, deliveries
and hashes of tokens, and secrets of jobs, so only its owner may read it. Logs and jobs' directories are not in it.
To restore it, stop the service and put the copy in the place of `taxiway.db` in the data directory, without the files
`taxiway.db-wal` and `taxiway.db-shm` that may lie beside it.")]
pub(super) struct Backup {
    /// The file to make; it must not be there yet.
    file: PathBuf,
}

impl Backup {
    pub(super) fn run(self, data_dir: Option<&Path>) -> anyhow::Result<()> {
        let database = config::data_dir(data_dir)?.join("taxiway.db");
        anyhow::ensure!(
            database.exists(),
            "there is no database {}: name the service's data directory with --data-dir",
            database.display()
        );
        store::backup(&database, &self.file)?;
        eprintln!("The database is copied to {}.", self.file.display());
        Ok(())
    }
}
