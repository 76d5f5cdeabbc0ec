//! `taxiway edit`

use std::time::Duration;

use clap::Args;
use serde_json::{Map, Value, json};
use taxiway_job::Time;

use super::client::Client;
use super::submit::{moment, pair, read_config};
use super::terminal::{print, print_json, printable};

/// Change a job while it waits. Rewriters and validators see it again. Of a job that runs, only --time-limit.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  taxiway edit ID --priority 10 --label team=nlp
  taxiway edit ID --config '{\"train\": {\"epochs\": 5}}'   # only what it names changes; null takes a key away
  taxiway edit ID --time-limit none")]
pub(super) struct Edit {
    /// Id of the job, its first digits, or its external id.
    id: String,
    #[command(flatten)]
    changes: Changes,
}

/// What changes: at least one of these.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
struct Changes {
    /// For people and filters.
    #[arg(short, long)]
    name: Option<String>,
    /// For people and filters; may be given several times. KEY= leaves an empty one.
    #[arg(short, long = "label", value_name = "KEY=VALUE", value_parser = pair)]
    labels: Vec<(String, String)>,
    /// What to change in the configuration, as a merge patch: a .json or .toml file, or JSON as text.
    #[arg(short, long, value_name = "FILE|JSON")]
    config: Option<String>,
    /// GPUs it needs; 0 is the CPU lane.
    #[arg(short, long)]
    gpus: Option<u32>,
    /// From -100 to 100; higher starts first.
    #[arg(long, allow_negative_numbers = true)]
    priority: Option<i16>,
    /// Longest time it may run: 2h30m, seconds, or none.
    #[arg(long, value_name = "DURATION", value_parser = limit)]
    time_limit: Option<Limit>,
    /// Start it then or later: 2026-01-31T12:00:00Z, or a time from now like 2h30m.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    not_before: Option<Time>,
}

/// A time limit, or none.
#[derive(Debug, Clone, Copy)]
struct Limit(Option<Duration>);

fn limit(text: &str) -> Result<Limit, taxiway_job::UnitError> {
    if text == "none" { Ok(Limit(None)) } else { taxiway_job::parse_duration(text).map(|limit| Limit(Some(limit))) }
}

impl Edit {
    pub(super) async fn run(self, client: &Client, json: bool) -> anyhow::Result<()> {
        let id = client.resolve(&self.id).await?;
        let job = client.edit(id, &self.changes.patch()?).await?;
        if json {
            return print_json(&job);
        }
        print(&format!("{} {} ({})\n", job.id, printable(&job.name), job.state))
    }
}

impl Changes {
    fn patch(self) -> anyhow::Result<Value> {
        let mut patch = Map::new();
        let mut set = |field: &str, value: Option<Value>| patch.extend(value.map(|value| (field.to_owned(), value)));
        set("name", self.name.map(Value::from));
        let labels: Map<String, Value> = self.labels.into_iter().map(|(key, value)| (key, value.into())).collect();
        set("labels", (!labels.is_empty()).then_some(Value::Object(labels)));
        set("config", self.config.as_deref().map(read_config).transpose()?.map(Value::Object));
        set("gpus", self.gpus.map(Value::from));
        set("priority", self.priority.map(Value::from));
        set("time_limit", self.time_limit.map(|Limit(limit)| json!(limit.map(|limit| limit.as_secs_f64()))));
        set("not_before", self.not_before.map(|time| json!(time)));
        Ok(Value::Object(patch))
    }
}
