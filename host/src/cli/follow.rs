//! `taxiway logs` and `taxiway wait`: to the end of a job, through restarts of the service.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Args;
use reqwest::Response;
use taxiway_job::JobId;

use super::client::{Client, ClientError, through_restarts};
use super::redraw::Redraw;
use super::terminal::{print, print_json, write_out};
use super::{exit, outcome};
use crate::api::wire::Job;

/// Print a job's log.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  taxiway logs 0193a1b2
  taxiway logs -f 0193a1b2      as it grows; ends with the job's exit status
  taxiway logs --tail 4096 -f 0193a1b2")]
pub(super) struct Logs {
    /// Id of the job, its first digits, or its external id.
    id: String,
    /// Go on as it grows, until the job has ended, and end with its exit status.
    #[arg(short, long)]
    follow: bool,
    /// Print progress bars with all their states also on a terminal. Without -f the last state of each is printed there; into a
    /// pipe or a file goes always every byte.
    #[arg(long)]
    raw: bool,
    /// Only the last so many bytes, and what follows.
    #[arg(long, value_name = "BYTES")]
    tail: Option<u64>,
}

impl Logs {
    pub(super) async fn run(self, client: &Client, json: bool) -> anyhow::Result<ExitCode> {
        anyhow::ensure!(!json, "a log is no JSON: leave out --json");
        let id = client.resolve(&self.id).await?;
        let from = match self.tail {
            Some(bytes) => client.log_size(id).await?.saturating_sub(bytes),
            None => 0,
        };
        if self.follow {
            return follow(client, id, from).await;
        }
        let log = client.log(id, from, false).await?;
        if self.raw || !std::io::stdout().is_terminal() {
            copy(log).await?;
        } else {
            show(log).await?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Wait until a job has ended.
#[derive(Debug, Args)]
#[command(after_help = super::EXIT_STATUSES)]
pub(super) struct Wait {
    /// Id of the job, its first digits, or its external id.
    id: String,
}

impl Wait {
    pub(super) async fn run(self, client: &Client, json: bool) -> anyhow::Result<ExitCode> {
        let id = client.resolve(&self.id).await?;
        wait_for(client, id, json).await
    }
}

/// Prints the log from its beginning until the job has ended.
pub(super) async fn log_to_the_end(client: &Client, id: JobId) -> anyhow::Result<ExitCode> {
    follow(client, id, 0).await
}

/// Prints the log from this byte on. A connection that breaks is made again: what counts is whether the job has ended.
async fn follow(client: &Client, id: JobId, mut from: u64) -> anyhow::Result<ExitCode> {
    loop {
        if let Some(mut log) = through_restarts(async || client.log(id, from, true).await).await? {
            while let Ok(Some(chunk)) = log.chunk().await {
                write_out(&chunk)?;
                from += chunk.len() as u64;
            }
        }
        let job = through_restarts(async || client.job(id).await).await?;
        if outcome::exit_status(&job).is_some() {
            // The stream may have broken off before the job ended.
            let rest = through_restarts(async || client.log(id, from, false).await).await?;
            copy(rest).await?;
            return Ok(end(&job));
        }
    }
}

/// Prints what comes.
async fn copy(log: Option<Response>) -> anyhow::Result<()> {
    if let Some(mut log) = log {
        while let Some(chunk) = log.chunk().await? {
            write_out(&chunk)?;
        }
    }
    Ok(())
}

/// Prints what comes, with the last state of each progress bar.
async fn show(log: Option<Response>) -> anyhow::Result<()> {
    let Some(mut log) = log else { return Ok(()) };
    let mut redraw = Redraw::default();
    while let Some(chunk) = log.chunk().await? {
        write_out(&redraw.push(&chunk))?;
    }
    write_out(&redraw.finish())
}

/// Waits until the job has ended and says how.
pub(super) async fn wait_for(client: &Client, id: JobId, json: bool) -> anyhow::Result<ExitCode> {
    let job = ended(client, id).await?;
    if json {
        print_json(&job)?;
        return Ok(status(&job));
    }
    print(&format!("{}\n", outcome::told(&job)))?;
    Ok(status(&job))
}

/// The job, once it has ended.
async fn ended(client: &Client, id: JobId) -> Result<Job<'static>, ClientError> {
    loop {
        // First the events, then the job: what happens in between is among the events.
        let mut events = through_restarts(async || client.events(id).await).await?;
        loop {
            let job = through_restarts(async || client.job(id).await).await?;
            if outcome::exit_status(&job).is_some() {
                return Ok(job);
            }
            let event = loop {
                match events.next().await {
                    Some(event) if event.kind == "job.progress" => {}
                    other => break other,
                }
            };
            if event.is_none() {
                break;
            }
        }
    }
}

fn end(job: &Job<'_>) -> ExitCode {
    let code = outcome::exit_status(job);
    if code != Some(0) {
        // Standard output is for the log.
        eprintln!("{}", outcome::told(job));
    }
    status(job)
}

fn status(job: &Job<'_>) -> ExitCode {
    ExitCode::from(outcome::exit_status(job).unwrap_or(exit::FAILED))
}
