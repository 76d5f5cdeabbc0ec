//! `taxiway submit`

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::{Map, Value};
use taxiway_job::{ConfigFormat, EnvValue, FailureClass, Problem, Retries, Rewrite, Time};

use super::client::Client;
use super::terminal::{print, print_json, printable, stderr_style, stdout_style};
use super::{array, exit, follow, outcome};
use crate::api::wire::{Array, Job, Submission, Verdict};

/// Submit a job.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  taxiway submit -- python3 train.py
  taxiway submit --config run.json --gpus 2 --time-limit 6h -- python3 train.py --config {config_file}
  taxiway submit --profile training --config '{\"lr\": 1e-4}' --wait
  taxiway submit --config run.toml --dry-run -- python3 train.py {config_file}
  taxiway submit --array lr=0.1,0.01 --array seed=1,2,3 --max-parallel 1 -- python3 train.py {config_file}
{config_file}, {job_id}, {external_id}, {job_dir} and {attempt} in the command are replaced when the job starts. It runs in the
present directory, with PATH, VIRTUAL_ENV, CONDA_* and LD_LIBRARY_PATH as they are here; under a profile, in the profile's.")]
pub(super) struct Submit {
    /// Command and arguments, after `--`.
    #[arg(last = true, value_name = "COMMAND")]
    pub(super) command: Vec<String>,
    /// Profile of the service's configuration: command, directory, environment, defaults.
    #[arg(short, long, value_name = "NAME")]
    profile: Option<String>,
    /// The training configuration: a .json or .toml file, or JSON as text; `-` reads JSON from standard input.
    #[arg(short, long, value_name = "FILE|JSON")]
    config: Option<String>,
    /// The language of {config_file}: json, yaml or toml. Default: the profile's, else json.
    #[arg(long, value_name = "LANGUAGE", value_parser = config_format)]
    config_format: Option<ConfigFormat>,
    /// For people and filters.
    #[arg(short, long)]
    name: Option<String>,
    /// For people and filters; may be given several times.
    #[arg(short, long = "label", value_name = "KEY=VALUE", value_parser = pair)]
    labels: Vec<(String, String)>,
    /// Environment variable; NAME alone takes the present value. May be given several times.
    #[arg(short, long = "env", value_name = "NAME[=VALUE]", value_parser = variable)]
    env: Vec<(String, String)>,
    /// Like --env, but never shown, logged or given to plugins.
    #[arg(long = "secret-env", value_name = "NAME[=VALUE]", value_parser = variable)]
    secret_env: Vec<(String, String)>,
    /// Send nothing of the present environment.
    #[arg(long)]
    no_env: bool,
    /// Working directory. Default: the present one; under a profile, the profile's.
    #[arg(long, value_name = "DIR")]
    cwd: Option<String>,
    /// GPUs it needs; 0 is the CPU lane.
    #[arg(short, long)]
    gpus: Option<u32>,
    /// Only GPUs with that much memory in all: 24GiB, or bytes.
    #[arg(long, value_name = "SIZE", value_parser = taxiway_job::parse_size)]
    gpu_memory: Option<u64>,
    /// Only this GPU; may be given several times.
    #[arg(long = "gpu-uuid", value_name = "UUID")]
    gpu_uuids: Vec<String>,
    /// From -100 to 100; higher starts first.
    #[arg(long, allow_negative_numbers = true)]
    priority: Option<i16>,
    /// Longest time it may run: 2h30m, or seconds.
    #[arg(long, value_name = "DURATION", value_parser = taxiway_job::parse_duration)]
    time_limit: Option<Duration>,
    /// Time between SIGTERM and SIGKILL when it is stopped.
    #[arg(long, value_name = "DURATION", value_parser = taxiway_job::parse_duration)]
    grace: Option<Duration>,
    /// Your own id of the job, unique among all jobs.
    #[arg(long, value_name = "ID")]
    external_id: Option<String>,
    /// Start it when this job has completed; may be given several times.
    #[arg(long, value_name = "ID")]
    after: Vec<String>,
    /// Start it when this job has ended, however; may be given several times.
    #[arg(long, value_name = "ID")]
    after_any: Vec<String>,
    /// Start it then or later: 2026-01-31T12:00:00Z, or a time from now like 2h30m.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    not_before: Option<Time>,
    /// How often it is tried again when it fails.
    #[arg(long, value_name = "N")]
    retries: Option<u32>,
    /// Pause before the first retry (30s); each further one is twice as long, up to an hour.
    #[arg(long, value_name = "DURATION", value_parser = taxiway_job::parse_duration, requires = "retries")]
    retry_backoff: Option<Duration>,
    /// Only after these failures: exit, signal, timeout, cuda_oom, host_oom …
    #[arg(long, value_name = "CLASS", value_delimiter = ',', requires = "retries")]
    retry_on: Vec<FailureClass>,
    /// One job for each combination of such values, which go into the configuration: KEY=VALUE,VALUE, or KEY= and a JSON array. A
    /// KEY that begins with / is a JSON Pointer. May be given several times.
    #[arg(long = "array", value_name = "KEY=VALUE,…", value_parser = array::values, conflicts_with = "follow")]
    arrays: Vec<(String, Vec<Value>)>,
    /// How many jobs of the array may run at a time.
    #[arg(long, value_name = "N", requires = "arrays")]
    max_parallel: Option<u32>,
    /// Let it wait until it is released.
    #[arg(long)]
    hold: bool,
    /// Only say what would become of it: problems, and what plugins would change.
    #[arg(long, conflicts_with_all = ["wait", "follow"])]
    dry_run: bool,
    /// Wait until it has ended, and end with its exit status.
    #[arg(long)]
    wait: bool,
    /// Print its log as it grows, and end with its exit status.
    #[arg(short, long, conflicts_with = "json")]
    follow: bool,
    /// Print the job's id only.
    #[arg(short, long)]
    quiet: bool,
}

impl Submit {
    pub(super) async fn run(self, client: &Client, json: bool) -> anyhow::Result<ExitCode> {
        let (dry_run, wait, follow, quiet) = (self.dry_run, self.wait, self.follow, self.quiet);
        let mut submission = self.submission()?;
        for ids in [&mut submission.after, &mut submission.after_any].into_iter().flatten() {
            for id in ids {
                *id = client.resolve(id).await?.to_string();
            }
        }
        if submission.array.is_some() {
            return array::submit(client, &submission, array::Answer { dry_run, wait, quiet, json }).await;
        }
        if dry_run {
            let verdict = client.dry_run(&submission).await?;
            if json {
                print_json(&verdict)?
            } else {
                print(&told(&verdict))?
            }
            return Ok(if verdict.accepted { ExitCode::SUCCESS } else { ExitCode::from(exit::REFUSED) });
        }
        let job = client.submit(&submission).await?;
        // With --json there is one value on standard output: the job as it ended.
        if !(json && wait) {
            announce(&job, json, quiet, follow)?;
        }
        if follow {
            return follow::log_to_the_end(client, job.id, job.attempt).await;
        }
        if wait {
            return follow::wait_for(client, job.id, json).await;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn submission(self) -> anyhow::Result<Submission> {
        if self.command.is_empty() && self.profile.is_none() {
            bail!(
                "nothing to run: give the command after `--`, or a --profile\nFor example: taxiway submit -- python3 train.py"
            );
        }
        let config = self.config.as_deref().map(read_config).transpose()?;
        // What a submission says wins over its profile, so nothing is said that was not asked for.
        let own = self.profile.is_none();
        let mut env = if own && !self.no_env { present_environment() } else { BTreeMap::new() };
        env.extend(self.env.into_iter().map(|(name, value)| (name, EnvValue::Plain(value))));
        env.extend(self.secret_env.into_iter().map(|(name, secret)| (name, EnvValue::Secret { secret })));
        let cwd = match self.cwd {
            Some(cwd) => Some(std::path::absolute(&cwd).with_context(|| format!("--cwd {cwd}"))?),
            None if own => Some(std::env::current_dir().context("the present directory cannot be told")?),
            None => None,
        };
        let cwd = cwd
            .map(|cwd| cwd.into_os_string().into_string())
            .transpose()
            .map_err(|cwd| anyhow::anyhow!("the directory {} has a name that is not UTF-8", cwd.display()))?;
        let retries = self.retries.map(|max| {
            let default = Retries::default();
            let on = if self.retry_on.is_empty() { default.on } else { self.retry_on };
            Retries { max, backoff: self.retry_backoff.unwrap_or(default.backoff), on }
        });
        let array = match self.arrays.is_empty() {
            true => None,
            false => Some(Array { params: array::params(self.arrays)?, max_parallel: self.max_parallel }),
        };
        Ok(Submission {
            command: (!self.command.is_empty()).then_some(self.command),
            profile: self.profile,
            config,
            config_format: self.config_format,
            name: self.name,
            labels: (!self.labels.is_empty()).then(|| self.labels.into_iter().collect()),
            cwd,
            env: (!env.is_empty()).then_some(env),
            gpus: self.gpus,
            gpu_memory: self.gpu_memory,
            gpu_uuids: (!self.gpu_uuids.is_empty()).then_some(self.gpu_uuids),
            priority: self.priority,
            time_limit: self.time_limit,
            grace: self.grace,
            external_id: self.external_id,
            after: (!self.after.is_empty()).then_some(self.after),
            after_any: (!self.after_any.is_empty()).then_some(self.after_any),
            not_before: self.not_before,
            retries,
            array,
            hold: self.hold.then_some(true),
        })
    }
}

fn announce(job: &Job<'_>, json: bool, quiet: bool, follow: bool) -> anyhow::Result<()> {
    let style = stderr_style();
    for warning in job.warnings.iter() {
        eprint!("{}", outcome::problem_lines(warning, style));
    }
    if json {
        return print_json(job);
    }
    if quiet {
        return print(&format!("{}\n", job.id));
    }
    let place = job.position.map(|position| format!(", position {position}")).unwrap_or_default();
    let line = format!("{} {} ({}{place})\n", job.id, printable(&job.name), job.state);
    if follow {
        // Standard output is for the log.
        eprint!("{line}");
        Ok(())
    } else {
        print(&line)
    }
}

fn told(verdict: &Verdict<'_>) -> String {
    let text = format!("{}\n", if verdict.accepted { "It would be accepted." } else { "It would be refused." });
    text + &found(&verdict.problems, &verdict.rewrites)
}

/// What a dry run found, and what plugins would change.
pub(super) fn found(problems: &[Problem], rewrites: &[Rewrite]) -> String {
    let style = stdout_style();
    let mut text = String::new();
    for problem in problems {
        text.push_str(&outcome::problem_lines(problem, style));
    }
    for rewrite in rewrites {
        text.push_str(&format!("{} {} would change:\n", printable(&rewrite.plugin), printable(&rewrite.version)));
        text.push_str(&patch_lines(&rewrite.patch));
    }
    text
}

/// An RFC 6902 patch, an operation a line.
pub(super) fn patch_lines(patch: &Value) -> String {
    let text = |operation: &Value, key: &str| operation[key].as_str().map(printable).unwrap_or_default();
    let operations = patch.as_array().map(Vec::as_slice).unwrap_or_default();
    operations
        .iter()
        .map(|operation| {
            let value =
                operation.get("value").map(|value| format!(" {}", printable(&value.to_string()))).unwrap_or_default();
            format!("  {:<7} {}{value}\n", text(operation, "op"), text(operation, "path"))
        })
        .collect()
}

/// What lets a job run as its user would have run it here (DESIGN §3).
fn present_environment() -> BTreeMap<String, EnvValue> {
    let wanted = |name: &str| matches!(name, "PATH" | "VIRTUAL_ENV" | "LD_LIBRARY_PATH") || name.starts_with("CONDA_");
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| wanted(name))
        .map(|(name, value)| (name, EnvValue::Plain(value)))
        .collect()
}

pub(super) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write it like KEY=VALUE".to_owned()),
    }
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some(_) => pair(text),
        None => std::env::var(text)
            .map(|value| (text.to_owned(), value))
            .map_err(|_| format!("there is no variable {text} here: write it like {text}=VALUE")),
    }
}

/// A time of the clock, or a duration from now.
pub(super) fn moment(text: &str) -> Result<Time, String> {
    if let Ok(time) = serde_json::from_value(Value::from(text)) {
        return Ok(time);
    }
    let wait = taxiway_job::parse_duration(text)
        .map_err(|_| "write it like 2026-01-31T12:00:00Z, or as a time from now like 2h30m".to_owned())?;
    Ok(Time::now().plus(wait))
}

fn config_format(text: &str) -> Result<ConfigFormat, String> {
    serde_json::from_value(text.into()).map_err(|_| "it is json, yaml or toml".to_owned())
}

/// The configuration that `given` names or is.
pub(super) fn read_config(given: &str) -> anyhow::Result<Map<String, Value>> {
    if given.trim_start().starts_with('{') {
        return json_object(given, "--config");
    }
    if given == "-" {
        let text =
            std::io::read_to_string(std::io::stdin()).context("cannot read the configuration from standard input")?;
        return json_object(&text, "standard input");
    }
    let text = std::fs::read_to_string(given)
        .with_context(|| format!("cannot read {given}: --config takes a file, or JSON that begins with {{"))?;
    let extension = Path::new(given).extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    match extension.to_ascii_lowercase().as_str() {
        "toml" => object(toml::from_str::<Value>(&text).with_context(|| format!("{given} is not TOML"))?),
        "yaml" | "yml" => bail!("{given} is YAML, which is not read here: give it as JSON or TOML"),
        _ => json_object(&text, given),
    }
}

/// The object that a JSON text is, unless some number of it would be altered on its way.
fn json_object(text: &str, whence: &str) -> anyhow::Result<Map<String, Value>> {
    let value = serde_json::from_str(text).with_context(|| format!("{whence} is not JSON"))?;
    if let Some(found) = taxiway_job::out_of_range(text.as_bytes()).first() {
        bail!("{whence}: {}: {found}", found.path);
    }
    object(value)
}

fn object(value: Value) -> anyhow::Result<Map<String, Value>> {
    match value {
        Value::Object(config) => Ok(config),
        _ => bail!("the configuration must be a JSON object"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_number_that_would_be_altered_is_refused_before_it_is_sent() {
        let error = read_config(r#"{"seed": 36893488147419103232}"#).expect_err("refused").to_string();
        assert!(error.contains("/seed") && error.contains("36893488147419103232"), "{error}");
    }

    #[test]
    fn the_language_of_the_configuration_file_is_one_of_three() {
        for (text, format) in [("json", ConfigFormat::Json), ("yaml", ConfigFormat::Yaml), ("toml", ConfigFormat::Toml)]
        {
            assert_eq!(config_format(text), Ok(format));
        }
        assert!(config_format("ini").is_err_and(|error| error.contains("yaml")));
    }

    #[test]
    fn a_configuration_is_read_from_text_json_and_toml() {
        let place = tempfile::tempdir().expect("a directory");
        let write = |name: &str, text: &str| {
            let path = place.path().join(name);
            std::fs::write(&path, text).expect("a file");
            path.to_str().expect("UTF-8").to_owned()
        };
        let wanted = json!({"train": {"lr": 0.5}});
        for given in [
            r#"{"train": {"lr": 0.5}}"#.to_owned(),
            write("c.json", r#"{"train": {"lr": 0.5}}"#),
            write("c.toml", "[train]\nlr = 0.5\n"),
        ] {
            assert_eq!(Value::Object(read_config(&given).expect("a configuration")), wanted, "{given}");
        }
        assert!(read_config(&write("list.json", "[1]")).is_err());
        assert!(read_config("/nowhere/c.json").is_err());
    }

    #[test]
    fn a_patch_is_told_an_operation_a_line() {
        let patch = json!([{"op": "add", "path": "/seed", "value": 7}, {"op": "remove", "path": "/x"}]);
        assert_eq!(patch_lines(&patch), "  add     /seed 7\n  remove  /x\n");
    }
}
