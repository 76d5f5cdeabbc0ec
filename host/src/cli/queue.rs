//! `taxiway queue`

use clap::{Args, Subcommand};
use taxiway_job::Time;

use super::client::Client;
use super::jobs::listing;
use super::terminal::{print, print_json, stdout_style};

/// Show the queue, pause, resume or drain it.
#[derive(Debug, Args)]
pub(super) struct Queue {
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Start nothing more; what runs goes on.
    Pause,
    /// Start jobs again.
    Resume,
    /// Start nothing more, and end the service when nothing runs any more. It starts paused the next time.
    Drain,
}

impl Queue {
    pub(super) async fn run(self, client: &Client, json: bool) -> anyhow::Result<()> {
        let queue = match self.verb {
            None => client.queue().await?,
            Some(Verb::Pause) => client.set_queue("pause").await?,
            Some(Verb::Drain) => client.set_queue("drain").await?,
            Some(Verb::Resume) => client.set_queue("resume").await?,
        };
        if json {
            return print_json(&queue);
        }
        let style = stdout_style();
        let counts = format!("{} running, {} queued, {} held", queue.running.len(), queue.queued, queue.held);
        print(&format!("{}: {counts}\n", style.bold(queue.mode.as_str())))?;
        if queue.running.is_empty() {
            return Ok(());
        }
        print(&listing(&queue.running, Time::now(), style))
    }
}
