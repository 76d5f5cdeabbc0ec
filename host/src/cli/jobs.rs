//! `taxiway ls`, `show`, `hold`, `release`, `retry`, `requeue`, `move`

use std::num::NonZeroUsize;

use clap::Args;
use taxiway_job::{ArrayId, State, Time};

use super::client::Client;
use super::submit::patch_lines;
use super::terminal::{self, Style, ago, bar, print, print_json, printable, span, stdout_style, table};
use super::{array, outcome, terminal::stderr_style};
use crate::api::wire::{self, Job, MoveTo, Page};

/// List jobs.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  taxiway ls
  taxiway ls --state queued,running --label team=nlp
  taxiway ls --json | jq -r '.items[].id'")]
pub(super) struct Ls {
    /// Only jobs in these states.
    #[arg(short, long, value_delimiter = ',', value_name = "STATE")]
    state: Vec<State>,
    /// Only jobs with this label; may be given several times.
    #[arg(short, long = "label", value_name = "KEY=VALUE")]
    labels: Vec<String>,
    /// Only jobs with this name.
    #[arg(short, long)]
    name: Option<String>,
    /// Only jobs of this profile.
    #[arg(short, long)]
    profile: Option<String>,
    /// Only jobs of this array.
    #[arg(long, value_name = "ID")]
    array: Option<ArrayId>,
    /// The most jobs.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
}

impl Ls {
    pub(super) async fn run(self, client: &Client, json: bool) -> anyhow::Result<()> {
        let jobs = self.all(client).await?;
        if json {
            return print_json(&jobs);
        }
        if jobs.items.is_empty() {
            eprintln!("No jobs. Submit one with `taxiway submit -- COMMAND`.");
            return Ok(());
        }
        print(&listing(&jobs.items, Time::now(), stdout_style()))?;
        if jobs.next_cursor.is_some() {
            eprintln!("{}", stderr_style().dim("There are more: raise --limit."));
        }
        Ok(())
    }

    async fn all(&self, client: &Client) -> anyhow::Result<Page<Job<'static>>> {
        let mut query: Vec<(&str, String)> = Vec::new();
        if !self.state.is_empty() {
            let states: Vec<&str> = self.state.iter().map(|state| state.as_str()).collect();
            query.push(("state", states.join(",")));
        }
        query.extend(self.labels.iter().map(|label| ("label", label.clone())));
        query.extend(self.name.iter().map(|name| ("name", name.clone())));
        query.extend(self.profile.iter().map(|profile| ("profile", profile.clone())));
        query.extend(self.array.map(|array| ("array_id", array.to_string())));
        let mut all: Page<Job<'static>> = Page { items: Vec::new(), next_cursor: None };
        loop {
            // Pages have at most 1,000.
            let rest = self.limit.saturating_sub(all.items.len() as u64).min(1000);
            let mut page = query.clone();
            page.push(("limit", rest.to_string()));
            page.extend(all.next_cursor.take().map(|cursor| ("cursor", cursor)));
            let next = client.jobs(&page).await?;
            all.items.extend(next.items);
            all.next_cursor = next.next_cursor;
            if all.next_cursor.is_none() || all.items.len() as u64 >= self.limit {
                return Ok(all);
            }
        }
    }
}

/// Jobs as a table.
pub(super) fn listing(jobs: &[Job<'_>], now: Time, style: Style) -> String {
    let ids: Vec<String> = jobs.iter().map(|job| job.id.to_string()).collect();
    let digits = distinct(&ids);
    let rows: Vec<Vec<String>> = jobs
        .iter()
        .zip(&ids)
        .map(|(job, id)| {
            vec![
                id[..digits].to_owned(),
                job.state.to_string(),
                job.position.map(|position| position.to_string()).unwrap_or_default(),
                job.gpus.to_string(),
                ago(job.submitted_at, now),
                run_time(job, now),
                printable(&job.name),
                note(job),
            ]
        })
        .collect();
    let paint = |row: usize, column: usize, cell: String| match column {
        1 => style.state(jobs[row].state, &cell),
        7 => style.dim(&cell),
        _ => cell,
    };
    table(&["ID", "STATE", "POS", "GPUS", "AGE", "RAN", "NAME", ""], &rows, paint, style)
}

/// How many characters tell these ids apart: at least eight, and none that ends in a hyphen.
fn distinct(ids: &[String]) -> usize {
    let mut sorted: Vec<&str> = ids.iter().map(String::as_str).collect();
    sorted.sort_unstable();
    let common = |pair: &[&str]| pair[0].bytes().zip(pair[1].bytes()).take_while(|(a, b)| a == b).count();
    let needed = sorted.windows(2).map(|pair| common(pair) + 1).max().unwrap_or(0).max(8);
    let longest = sorted.first().map_or(0, |id| id.len());
    let ends_in_hyphen = sorted.iter().any(|id| id.as_bytes().get(needed - 1) == Some(&b'-'));
    (if ends_in_hyphen { needed + 1 } else { needed }).min(longest)
}

fn run_time(job: &Job<'_>, now: Time) -> String {
    let Some(started) = job.started_at else { return String::new() };
    ago(started, job.finished_at.unwrap_or(now))
}

/// What is worth knowing beside the columns.
fn note(job: &Job<'_>) -> String {
    if let (State::Running, Some(fraction)) = (job.state, job.progress.as_ref().and_then(|progress| progress.fraction))
    {
        return bar(fraction);
    }
    match (&job.failure, &job.reason) {
        (Some(failure), _) if job.state == State::Failed => {
            format!("{}: {}", failure.class.as_str(), printable(&failure.message))
        }
        (_, Some(reason)) => printable(&reason.message),
        _ => String::new(),
    }
}

/// Show everything about a job.
#[derive(Debug, Args)]
pub(super) struct Show {
    /// Id of the job, its first digits, or its external id.
    id: String,
}

impl Show {
    pub(super) async fn run(self, client: &Client, json: bool) -> anyhow::Result<()> {
        let id = client.resolve(&self.id).await?;
        let job = client.job(id).await?;
        if json { print_json(&job) } else { print(&description(&job, Time::now(), stdout_style())?) }
    }
}

fn description(job: &Job<'_>, now: Time, style: Style) -> anyhow::Result<String> {
    let mut text = String::new();
    let mut line = |label: &str, value: String| {
        text.push_str(&format!("{} {value}\n", style.bold(&format!("{label:<11}"))));
    };
    line("id", job.id.to_string());
    line("name", printable(&job.name));
    let place = job.position.map(|position| format!(", position {position}")).unwrap_or_default();
    line("state", format!("{}{place}", style.state(job.state, job.state.as_str())));
    if let Some(reason) = &job.reason {
        line(
            "reason",
            format!("{} {}", printable(&reason.message), style.dim(&format!("({})", printable(&reason.code)))),
        );
    }
    if let Some(failure) = &job.failure {
        line("failure", format!("{}: {}", failure.class.as_str(), printable(&failure.message)));
        if let Some(evidence) = &failure.evidence {
            line("", printable(evidence));
        }
    }
    if let Some(code) = job.exit.code {
        line("exit", format!("status {code}"));
    } else if let Some(signal) = job.exit.signal {
        line("exit", format!("signal {signal}"));
    }
    if let Some(progress) = &job.progress {
        if let Some(fraction) = progress.fraction {
            let eta = progress.eta_seconds.filter(|_| !job.state.has_ended());
            // As a whole number of seconds: nobody estimates better.
            let eta = eta.map(|seconds| format!(", about {} left", span(seconds as i64))).unwrap_or_default();
            line("progress", format!("{}{eta}", bar(fraction)));
        }
        if !progress.metrics.is_empty() {
            let metrics: Vec<String> = progress
                .metrics
                .iter()
                .map(|(name, value)| format!("{}={}", printable(name), printable(&value.to_string())))
                .collect();
            line("metrics", metrics.join(" "));
        }
    }
    let command: Vec<String> = job.command.iter().map(|argument| quoted(argument)).collect();
    line("command", command.join(" "));
    for (label, value) in [("directory", &job.cwd), ("profile", &job.profile), ("external id", &job.external_id)] {
        if let Some(value) = value {
            line(label, printable(value));
        }
    }
    if let (Some(id), Some(params)) = (job.array_id, &job.array_params) {
        line("array", format!("{id}, number {}: {}", job.array_index.unwrap_or(0), array::told(params)));
    }
    line(
        "gpus",
        if job.gpu_uuids.is_empty() {
            job.gpus.to_string()
        } else {
            format!("{} ({})", job.gpus, job.gpu_uuids.join(", "))
        },
    );
    line("priority", job.priority.to_string());
    if let Some(limit) = job.time_limit {
        line("time limit", span(i64::try_from(limit.as_secs())?));
    }
    for (name, value) in job.labels.iter() {
        line("label", format!("{}={}", printable(name), printable(value)));
    }
    line("submitted", format!("{} by {}", job.submitted_at, printable(&job.submitted_by)));
    for (label, time) in [("started", job.started_at), ("finished", job.finished_at)] {
        if let Some(time) = time {
            line(label, time.to_string());
        }
    }
    if job.started_at.is_some() {
        line("ran", run_time(job, now));
    }
    text.push_str(&format!("{}\n{}\n", style.bold("config"), serde_json::to_string_pretty(&job.config)?));
    for rewrite in job.rewrites.iter() {
        text.push_str(&format!(
            "{} {} {} changed:\n",
            style.bold("rewrite"),
            printable(&rewrite.plugin),
            printable(&rewrite.version)
        ));
        text.push_str(&patch_lines(&rewrite.patch));
    }
    for warning in job.warnings.iter() {
        text.push_str(&outcome::problem_lines(warning, style));
    }
    Ok(text)
}

/// An argument as a shell would need it.
fn quoted(argument: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:@%+,{}".contains(c);
    let text = printable(argument);
    if !text.is_empty() && text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// Do something to jobs.
#[derive(Debug, Args)]
pub(super) struct Operate {
    /// Ids of the jobs, their first digits, or their external ids.
    #[arg(required = true)]
    ids: Vec<String>,
}

impl Operate {
    pub(super) async fn run(self, client: &Client, verb: &str, json: bool) -> anyhow::Result<()> {
        operate(&self.ids, client, verb, None, json).await
    }
}

/// Put jobs back into the line.
#[derive(Debug, Args)]
pub(super) struct Requeue {
    /// Ids of the jobs, their first digits, or their external ids.
    #[arg(required = true)]
    ids: Vec<String>,
    /// Take them out of the line, until they are released.
    #[arg(long)]
    hold: bool,
}

impl Requeue {
    pub(super) async fn run(self, client: &Client, json: bool) -> anyhow::Result<()> {
        let body = serde_json::to_value(wire::Requeue { hold: self.hold })?;
        operate(&self.ids, client, "requeue", Some(&body), json).await
    }
}

/// Move a queued job in the line.
#[derive(Debug, Args)]
pub(super) struct Move {
    /// Id of the job, its first digits, or its external id.
    id: String,
    #[command(flatten)]
    to: Place,
}

/// Where to: one of these.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Place {
    /// Before all others.
    #[arg(long)]
    front: bool,
    /// Behind all others.
    #[arg(long)]
    back: bool,
    /// Just before this job.
    #[arg(long, value_name = "ID")]
    before: Option<String>,
    /// To this position, from 1.
    #[arg(long, value_name = "N")]
    position: Option<NonZeroUsize>,
}

impl Move {
    pub(super) async fn run(self, client: &Client, json: bool) -> anyhow::Result<()> {
        let to = match self.to {
            Place { before: Some(before), .. } => MoveTo::Before(client.resolve(&before).await?.to_string()),
            Place { position: Some(position), .. } => MoveTo::Position(position),
            Place { front: true, .. } => MoveTo::Front,
            Place { .. } => MoveTo::Back,
        };
        let body = serde_json::to_value(wire::Move { to })?;
        operate(&[self.id], client, "move", Some(&body), json).await
    }
}

/// Does it to each; one that cannot be done does not keep the others from it.
pub(super) async fn operate(
    ids: &[String],
    client: &Client,
    verb: &str,
    body: Option<&serde_json::Value>,
    json: bool,
) -> anyhow::Result<()> {
    let mut first_failure = None;
    for text in ids {
        let done = async {
            let id = client.resolve(text).await?;
            Ok::<_, anyhow::Error>(client.operate(id, verb, body).await?)
        };
        match done.await {
            Ok(job) if json => print_json(&job)?,
            Ok(job) => terminal::print(&format!("{} {} ({})\n", job.id, printable(&job.name), job.state))?,
            Err(error) if first_failure.is_none() => first_failure = Some(error),
            Err(error) => eprintln!("{} {error:#}", stderr_style().red("error:")),
        }
    }
    first_failure.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_shown_as_far_as_they_differ() {
        let ids = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>();
        assert_eq!(distinct(&ids(&["01937c3e-8f00-7abc"])), 8);
        assert_eq!(distinct(&ids(&["01937c3e-8f00-7abc", "01937c3e-8f01-7abc"])), 13);
        assert_eq!(distinct(&ids(&["01937c3e-8f00-7abc", "01937c3e-8f00-7abd"])), 18);
        assert_eq!(distinct(&[]), 0);
    }

    #[test]
    fn a_command_can_be_pasted_into_a_shell() {
        assert_eq!(quoted("train.py"), "train.py");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
    }
}
