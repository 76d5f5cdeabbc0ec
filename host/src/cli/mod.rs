//! The command line: `taxiway serve` and a client of the public API.
//!
//! Everything but `serve`, `service` and `config` talks to a running service through [`client`], which knows nothing of the service but
//! the types of [`crate::api::wire`]. One command a file.

mod array;
mod client;
mod config;
mod edit;
mod escapes;
mod explain;
mod follow;
mod gpus;
mod jobs;
mod outcome;
mod plugins;
mod queue;
mod redraw;
mod serve;
mod service;
mod sse;
mod submit;
mod terminal;
mod upkeep;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use client::{Client, ClientError};

/// Exit statuses, as `taxiway --help` tells them.
mod exit {
    /// The request failed.
    pub(super) const FAILED: u8 = 1;
    /// The submission was refused.
    pub(super) const REFUSED: u8 = 3;
    /// No service answers.
    pub(super) const UNREACHABLE: u8 = 4;
}

const EXIT_STATUSES: &str = "\
Exit status:
  0        done
  1        the request failed
  2        the command line is not understood
  3        the submission was refused; the problems are listed
  4        no service answers
With --wait, -f and `wait`, the status of the job: its own exit status, 128 + N if signal N ended it, 124 if its time ran
out, 125 if it ended without a status (it could not be started, or its machine went away), 130 if it was cancelled.";

/// Lines up GPU jobs, checks each one before it takes off, and launches them one after another.
#[derive(Debug, Parser)]
#[command(name = "taxiway", version, after_help = EXIT_STATUSES, disable_help_subcommand = true)]
struct CommandLine {
    #[command(flatten)]
    connect: Connect,
    /// Print JSON, as the API answers it.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

/// How to find the service.
#[derive(Debug, Clone, Args)]
struct Connect {
    /// URL of the service. Default: the socket in the data directory, else /run/taxiway/taxiway.sock.
    #[arg(long, global = true, env = "TAXIWAY_SERVER", value_name = "URL")]
    server: Option<String>,
    /// File with the access token, for --server.
    #[arg(long, global = true, env = "TAXIWAY_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Data directory of the service. Default: $TAXIWAY_DATA_DIR, $XDG_STATE_HOME/taxiway or ~/.local/state/taxiway.
    #[arg(long, global = true, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the service.
    Serve(serve::Serve),
    /// Submit a job.
    Submit(Box<submit::Submit>),
    /// List jobs, the newest first.
    Ls(jobs::Ls),
    /// Show everything about a job.
    Show(jobs::Show),
    /// Say why a job waits or failed, and when it is expected to start.
    Explain(explain::Explain),
    /// Print a job's log.
    Logs(follow::Logs),
    /// Cancel jobs. What runs gets SIGTERM, and SIGKILL after its grace.
    Cancel(array::Cancel),
    /// Take queued jobs out of the line until they are released.
    Hold(jobs::Operate),
    /// Put held jobs back into the line.
    Release(jobs::Operate),
    /// Have ended jobs make another attempt, at the back of their priority.
    Retry(jobs::Operate),
    /// Stop jobs gracefully and put them back into the line, at the back of their priority.
    Requeue(jobs::Requeue),
    /// Change a job while it waits, or the time limit of one that runs.
    Edit(edit::Edit),
    /// Move a queued job in the line. It takes the priority of the job that it comes to stand beside.
    Move(jobs::Move),
    /// Wait until a job has ended, and end with its exit status.
    Wait(follow::Wait),
    /// Show the queue, pause, resume or drain it.
    Queue(queue::Queue),
    /// List the GPUs, who holds each, and how they are.
    Gpus(gpus::Gpus),
    /// Look at the plugins, or write, check and try out your own.
    Plugin(plugins::Plugin),
    /// Remove now what was kept long enough: ended jobs, their logs, old events.
    Gc(upkeep::Gc),
    /// Copy the database to a file, also while the service runs.
    Backup(upkeep::Backup),
    /// Check or show the configuration.
    Config(config::Config),
    /// Run the service under systemd.
    Service(service::Service),
}

/// Reads the process's arguments and does what they say.
#[must_use]
pub fn main() -> ExitCode {
    run(std::env::args_os().collect())
}

fn run(arguments: Vec<OsString>) -> ExitCode {
    let line = match CommandLine::try_parse_from(arguments) {
        Ok(line) => line,
        Err(error) => {
            // Standard output may be closed; there is nobody else to tell.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let json = line.json;
    // Present already when a test runs several command lines in one process.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let done = match line.command {
        Command::Serve(serve) => serve.run(line.connect.data_dir.as_deref()).map(|()| ExitCode::SUCCESS),
        Command::Config(config) => config.run().map(|()| ExitCode::SUCCESS),
        Command::Backup(backup) => backup.run(line.connect.data_dir.as_deref()).map(|()| ExitCode::SUCCESS),
        Command::Service(service) => service.run(line.connect.data_dir.as_deref()).map(|()| ExitCode::SUCCESS),
        command => ask(command, &line.connect, json),
    };
    done.unwrap_or_else(|error| report(&error, json))
}

/// The commands that talk to a service.
fn ask(command: Command, connect: &Connect, json: bool) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let command = match command {
            // Most of it needs no service.
            Command::Plugin(plugin) => return plugin.run(connect, json).await,
            command => command,
        };
        let client = Client::new(connect)?;
        let done = |()| ExitCode::SUCCESS;
        match command {
            Command::Submit(submit) => submit.run(&client, json).await,
            Command::Ls(ls) => ls.run(&client, json).await.map(done),
            Command::Show(show) => show.run(&client, json).await.map(done),
            Command::Explain(explain) => explain.run(&client, json).await.map(done),
            Command::Logs(logs) => logs.run(&client, json).await,
            Command::Cancel(cancel) => cancel.run(&client, json).await.map(done),
            Command::Hold(operate) => operate.run(&client, "hold", json).await.map(done),
            Command::Release(operate) => operate.run(&client, "release", json).await.map(done),
            Command::Retry(operate) => operate.run(&client, "retry", json).await.map(done),
            Command::Requeue(requeue) => requeue.run(&client, json).await.map(done),
            Command::Edit(edit) => edit.run(&client, json).await.map(done),
            Command::Move(to) => to.run(&client, json).await.map(done),
            Command::Wait(wait) => wait.run(&client, json).await,
            Command::Queue(queue) => queue.run(&client, json).await.map(done),
            Command::Gpus(gpus) => gpus.run(&client, json).await.map(done),
            Command::Gc(gc) => gc.run(&client, json).await.map(done),
            Command::Plugin(_) | Command::Serve(_) | Command::Config(_) | Command::Service(_) | Command::Backup(_) => {
                unreachable!("these do not talk to a service")
            }
        }
    })
}

/// Tells what went wrong, and with which exit status.
fn report(error: &anyhow::Error, json: bool) -> ExitCode {
    let client_error = error.downcast_ref::<ClientError>();
    if let Some(ClientError::Refused(document)) = client_error {
        if json && terminal::print_json(document).is_ok() {
            return ExitCode::from(outcome::status_of_refusal(document));
        }
        outcome::print_refusal(document);
        return ExitCode::from(outcome::status_of_refusal(document));
    }
    eprintln!("{} {}", terminal::stderr_style().red("error:"), causes(error));
    match client_error {
        Some(ClientError::Unreachable { .. }) => ExitCode::from(exit::UNREACHABLE),
        _ => ExitCode::from(exit::FAILED),
    }
}

/// An error and its causes. A message may name its cause already; then it is not said again.
fn causes(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |told, cause| {
        let cause = cause.to_string();
        match told.is_empty() {
            true => cause,
            false if told.contains(&cause) => told,
            false => format!("{told}: {cause}"),
        }
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn a_cause_is_told_once() {
        use anyhow::Context;
        let error = Err::<(), _>(anyhow::anyhow!("disk full")).context("cannot write: disk full; make room");
        let error = error.context("cannot start").expect_err("an error");
        assert_eq!(causes(&error), "cannot start: cannot write: disk full; make room");
    }

    #[test]
    fn options_of_the_job_s_own_command_are_left_alone() {
        let line = CommandLine::try_parse_from(["taxiway", "submit", "--gpus", "2", "--", "python3", "--json", "-f"]);
        let Ok(CommandLine { json: false, command: Command::Submit(submit), .. }) = line else { panic!("{line:?}") };
        assert_eq!(submit.command, ["python3", "--json", "-f"]);
    }
}
