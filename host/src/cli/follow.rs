//! `taxiway logs` and `taxiway wait`: to the end of a job, through restarts of the service.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use reqwest::Response;
use taxiway_job::JobId;

use super::client::{Client, ClientError, through_restarts};
use super::escapes::Escapes;
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
    /// Print every byte as the job wrote it also on a terminal, which obeys what is in it. Without this only text and colours are
    /// printed there, and without -f of each progress bar the last state; into a pipe or a file goes always every byte.
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
        // Of a job that goes on, the present attempt, which may not have begun: the log so far is another's then.
        let attempt = match self.follow {
            true => {
                let job = through_restarts(async || client.job(id).await).await?;
                outcome::exit_status(&job).is_none().then_some(job.attempt)
            }
            false => None,
        };
        let from = match self.tail {
            Some(bytes) => client.log_size(id, attempt).await?.saturating_sub(bytes),
            None => 0,
        };
        let mut screen = Screen::new(self.raw, self.follow);
        if self.follow {
            return follow(client, id, attempt, from, screen).await;
        }
        screen.copy(client.log(id, from).await?).await?;
        screen.finish()?;
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

/// After a stream that broke off without a byte the next one is asked for this much later …
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// … and twice as late each time, up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Prints the logs from that of this attempt on until the job has ended.
pub(super) async fn log_to_the_end(client: &Client, id: JobId, attempt: u32) -> anyhow::Result<ExitCode> {
    follow(client, id, Some(attempt), 0, Screen::new(false, true)).await
}

/// Prints the log of an attempt (the present one, or the last of a job that has ended) from this byte on, and those of further
/// attempts from their beginnings. A connection that breaks is made again: what counts is whether the attempt is over.
async fn follow(
    client: &Client,
    id: JobId,
    attempt: Option<u32>,
    mut from: u64,
    mut screen: Screen,
) -> anyhow::Result<ExitCode> {
    let mut attempt = match attempt {
        Some(attempt) => attempt,
        None => {
            let job = through_restarts(async || client.job(id).await).await?;
            if outcome::exit_status(&job).is_some() {
                // Its last attempt may never have begun.
                screen.copy(through_restarts(async || client.log(id, from).await).await?).await?;
                screen.finish()?;
                return Ok(end(&job));
            }
            job.attempt
        }
    };
    let mut pause = FIRST_PAUSE;
    loop {
        let before = from;
        if let Some(mut log) = through_restarts(async || client.follow(id, attempt, from).await).await? {
            while let Ok(Some(chunk)) = log.chunk().await {
                screen.show(&chunk)?;
                from += chunk.len() as u64;
            }
        }
        let job = through_restarts(async || client.job(id).await).await?;
        let has_ended = outcome::exit_status(&job).is_some();
        if has_ended || job.attempt > attempt {
            // The stream may have broken off before the attempt was over.
            screen.copy(through_restarts(async || client.log_of(id, attempt, from).await).await?).await?;
            if job.attempt == attempt {
                screen.finish()?;
                return Ok(end(&job));
            }
            (attempt, from, pause) = (attempt + 1, 0, FIRST_PAUSE);
            screen.begin_anew()?;
        } else if from > before {
            pause = FIRST_PAUSE;
        } else {
            // The service is there and cannot read the log. Nothing tells when it can.
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// Where a log goes.
enum Screen {
    /// Into a pipe or a file, or wherever every byte is wanted.
    Bytes,
    /// To a terminal, as it comes.
    Growing(Escapes),
    /// To a terminal, with the last state of each progress bar.
    Whole(Escapes, Redraw),
}

impl Screen {
    fn new(raw: bool, grows: bool) -> Self {
        match (raw || !std::io::stdout().is_terminal(), grows) {
            (true, _) => Self::Bytes,
            (false, true) => Self::Growing(Escapes::default()),
            (false, false) => Self::Whole(Escapes::default(), Redraw::default()),
        }
    }

    fn show(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        match self {
            Self::Bytes => write_out(bytes),
            Self::Growing(escapes) => write_out(&escapes.push(bytes)),
            Self::Whole(escapes, redraw) => write_out(&redraw.push(&escapes.push(bytes))),
        }
    }

    /// Another log follows: what was cut off in the one before is not a part of it.
    fn begin_anew(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Growing(escapes) => write_out(&std::mem::take(escapes).finish()),
            Self::Bytes | Self::Whole(..) => Ok(()),
        }
    }

    /// Shows all that comes.
    async fn copy(&mut self, log: Option<Response>) -> anyhow::Result<()> {
        if let Some(mut log) = log {
            while let Some(chunk) = log.chunk().await? {
                self.show(&chunk)?;
            }
        }
        Ok(())
    }

    /// Shows the rest, once nothing more comes.
    fn finish(self) -> anyhow::Result<()> {
        match self {
            Self::Bytes => Ok(()),
            Self::Growing(escapes) => write_out(&escapes.finish()),
            Self::Whole(escapes, redraw) => {
                write_out(&redraw.finish())?;
                write_out(&escapes.finish())
            }
        }
    }
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
