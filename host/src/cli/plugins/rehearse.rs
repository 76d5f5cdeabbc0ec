//! `taxiway plugin test`

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};
use taxiway_job::{JobId, State};
use taxiway_plugin_host::{Hook, Mode, OpenError, PluginStatus};

use super::super::client::ClientError;
use super::super::submit::{patch_lines, read_config};
use super::super::terminal::{Style, print, print_json, printable, stdout_style};
use super::super::{Connect, outcome};
use super::list::duration;
use super::{Source, check, unsound};
use crate::api;
use crate::rehearsal::{self, Call, Mood, Rehearsed, Setting};

/// Have a plugin judge and rewrite a job as the service would, and show all it said, changed and cost.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  taxiway plugin test batch-limit.wasm --config '{\"batch_size\": 512}'
  taxiway plugin test notify.toml --job job.json --live failed
Every call is a dry run, in which only GET and HEAD requests leave the machine, and completions are left out; with --live the
plugin does what it does. Exit status 0: it answered every call, whatever it thinks of the job, and rewriting twice changes
nothing more.")]
pub(super) struct Test {
    #[command(flatten)]
    source: Source,
    /// The job: the JSON of a submission, as for POST /api/v1/jobs. Default: a job without a configuration.
    #[arg(long, value_name = "FILE")]
    job: Option<PathBuf>,
    /// Its configuration: a file (JSON or TOML), JSON that begins with {, or - for standard input.
    #[arg(long, value_name = "CONFIG")]
    config: Option<String>,
    /// Its profile.
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,
    /// Act as for a real job that ends in this way.
    #[arg(long, value_name = "END", num_args = 0..=1, default_missing_value = "completed")]
    live: Option<Ending>,
}

/// How a rehearsed job ends.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Ending {
    Completed,
    Failed,
    Cancelled,
}

impl Test {
    pub(super) async fn run(self, connect: &Connect, json: bool) -> anyhow::Result<ExitCode> {
        let submission = serde_json::to_vec(&self.submission()?)?;
        let draft = api::read_draft(JobId::new(), &submission).map_err(ClientError::Refused)?;
        let settings = self.source.settings(connect)?;
        let (plugin, status) = match self.source.open(&settings).await? {
            Ok(opened) => opened,
            Err(OpenError::Load(error)) => return check::refuse(&error, json),
            Err(OpenError::Start(error)) => return Err(error.into()),
        };
        let setting = Setting {
            gpus: crate::service::inventory(&settings).await?,
            profiles: settings.config.profiles.clone(),
            grace: settings.config.launcher.grace,
            jobs_dir: settings.jobs_dir(),
        };
        let mood = match self.live {
            None => Mood::DryRun,
            Some(Ending::Completed) => Mood::Live(State::Completed),
            Some(Ending::Failed) => Mood::Live(State::Failed),
            Some(Ending::Cancelled) => Mood::Live(State::Cancelled),
        };
        let rehearsed = rehearsal::rehearse(&plugin, setting, draft, mood).await?;
        if json {
            print_json(&json!({"plugin": status, "sound": rehearsed.is_sound(), "rehearsal": rehearsed}))?;
        } else {
            print(&told(&status, &rehearsed, mood, stdout_style()))?;
        }
        Ok(if rehearsed.is_sound() { ExitCode::SUCCESS } else { unsound() })
    }

    fn submission(&self) -> anyhow::Result<Map<String, Value>> {
        let mut submission = match &self.job {
            None => Map::new(),
            Some(path) => {
                let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
                match serde_json::from_slice(&text).with_context(|| format!("{} is not JSON", path.display()))? {
                    Value::Object(submission) => submission,
                    _ => bail!("{} holds no JSON object: a submission is one", path.display()),
                }
            }
        };
        if let Some(config) = &self.config {
            submission.insert("config".to_owned(), Value::Object(read_config(config)?));
        }
        if let Some(profile) = &self.profile {
            submission.insert("profile".to_owned(), Value::from(profile.as_str()));
        }
        if !submission.contains_key("command") && !submission.contains_key("profile") {
            // It never runs; a job has one.
            submission.insert("command".to_owned(), json!(["true"]));
        }
        Ok(submission)
    }
}

fn told(status: &PluginStatus, rehearsed: &Rehearsed, mood: Mood, style: Style) -> String {
    let version = status.version.as_deref().unwrap_or_default();
    let mut text = format!("{} {}\n", style.bold(&printable(&status.name)), printable(version));
    for warning in &status.warnings {
        text.push_str(&format!("  {} {}\n", style.yellow("warning:"), printable(warning)));
    }
    for call in &rehearsed.calls {
        text.push_str(&call_lines(call, style));
    }
    if mood == Mood::DryRun && status.hooks.contains(&Hook::Complete) {
        text.push_str(&style.dim("complete was not called: it acts on the world outside; --live calls it"));
        text.push('\n');
    }
    for rewrite in &rehearsed.rewrites {
        let changes = patch_lines(&rewrite.patch);
        text.push_str(if changes.is_empty() { "It changes nothing in the configuration.\n" } else { "It changes:\n" });
        text.push_str(&changes);
    }
    if let Some(again) = rehearsed.changed_again.as_ref().and_then(Value::as_array).filter(|patch| !patch.is_empty()) {
        let again = patch_lines(&Value::Array(again.clone()));
        text.push_str(&format!("{} rewriting the result once more changes it again:\n{again}", style.red("error:")));
    }
    for problem in &rehearsed.problems {
        text.push_str(&outcome::problem_lines(problem, style));
    }
    text + &verdict(status, rehearsed)
}

/// What would become of the job.
fn verdict(status: &PluginStatus, rehearsed: &Rehearsed) -> String {
    let has_failed = rehearsed.calls.iter().any(|call| call.failure.is_some());
    let verdict = match rehearsed {
        Rehearsed { accepted: true, at_launch: Some(why), .. } => {
            format!("The job would be accepted, and would not start: {}", printable(why))
        }
        Rehearsed { accepted: true, held: Some(why), .. } => {
            format!("The job would be accepted and held: {}", printable(why))
        }
        Rehearsed { accepted: true, .. } if has_failed => {
            "The job would be accepted all the same: its manifest says on_error = \"ignore\".".to_owned()
        }
        Rehearsed { accepted: true, .. } => "The job would be accepted.".to_owned(),
        // Errors that were found count for more than a failure.
        Rehearsed { problems, .. } if has_failed && problems.is_empty() => {
            "The job would be refused with 503, as long as the plugin fails: its on_error is \"reject\".".to_owned()
        }
        _ => "The job would be refused.".to_owned(),
    };
    match status.mode {
        Mode::Enforce => format!("{verdict}\n"),
        Mode::Observe => format!("If it did not only observe: {}\n", lower_first(&verdict)),
    }
}

fn lower_first(sentence: &str) -> String {
    let mut letters = sentence.chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}

fn call_lines(call: &Call, style: Style) -> String {
    let stage = call.stage.map(|stage| format!(" at {}", stage.as_str())).unwrap_or_default();
    let memory = call.peak_memory_bytes as f64 / f64::from(1 << 20);
    let mut text =
        format!("{}{stage}: {}, {memory:.1} MiB\n", call.hook, duration(&Value::from(call.duration_seconds)));
    for line in &call.log {
        text.push_str(&format!("  {} {}\n", style.dim(line.source), printable(&line.text)));
    }
    if let Some(failure) = &call.failure {
        let message = printable(&failure.message);
        text.push_str(&format!("  {} {message} ({})\n", style.red("the plugin failed:"), failure.kind));
    }
    text
}
