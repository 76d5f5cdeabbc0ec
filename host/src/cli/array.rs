//! Arrays on the command line: `submit --array`, `cancel --array`.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Map, Value};
use taxiway_job::ArrayId;

use super::client::Client;
use super::jobs;
use super::submit::found;
use super::terminal::{print, print_json, printable};
use super::{exit, follow};
use crate::api::wire::{CancelFilter, CancelMany, Submission};

/// What `submit` tells of an array.
#[derive(Debug, Clone, Copy)]
pub(super) struct Answer {
    pub(super) dry_run: bool,
    pub(super) wait: bool,
    pub(super) quiet: bool,
    pub(super) json: bool,
}

/// The key and values of a text like `lr=0.1,0.01`. What is JSON is taken as such, and anything else as text.
pub(super) fn values(text: &str) -> Result<(String, Vec<Value>), String> {
    let (key, list) = text
        .split_once('=')
        .filter(|(key, _)| !key.is_empty())
        .ok_or_else(|| "write it like lr=0.1,0.01".to_owned())?;
    let altered = |text: &str| {
        let is_json = serde_json::from_str::<Value>(text).is_ok();
        is_json.then(|| taxiway_job::out_of_range(text.as_bytes()).first().map(ToString::to_string)).flatten()
    };
    if let Some(why) = altered(list).or_else(|| list.split(',').find_map(altered)) {
        return Err(why);
    }
    let values = match serde_json::from_str(list) {
        Ok(Value::Array(values)) => values,
        _ if list.starts_with(['[', '{']) => {
            return Err("values that begin with [ or { are a JSON list, like layers=[[64],[64,64]]".to_owned());
        }
        _ => list.split(',').map(|one| serde_json::from_str(one).unwrap_or_else(|_| Value::from(one))).collect(),
    };
    Ok((key.to_owned(), values))
}

/// The lists by their keys, each of which is given once: a second list would take the place of the first.
pub(super) fn params(lists: Vec<(String, Vec<Value>)>) -> anyhow::Result<Map<String, Value>> {
    let mut params = Map::new();
    for (key, values) in lists {
        let values = Value::Array(values);
        if let Some(first) = params.insert(key.clone(), values) {
            let given = first.as_array().map_or(0, Vec::len);
            anyhow::bail!(
                "--array {} is given twice: put all its values into one list ({given} are in the first)",
                printable(&key)
            );
        }
    }
    Ok(params)
}

/// Values for people: `lr=0.1 seed=1`.
pub(super) fn told(params: &Map<String, Value>) -> String {
    let one = |(key, value): (&String, &Value)| match value {
        Value::String(text) => format!("{}={}", printable(key), printable(text)),
        value => format!("{}={}", printable(key), printable(&value.to_string())),
    };
    params.iter().map(one).collect::<Vec<_>>().join(" ")
}

/// Submits an array, or says what would become of it.
pub(super) async fn submit(client: &Client, submission: &Submission, answer: Answer) -> anyhow::Result<ExitCode> {
    if answer.dry_run {
        let verdict = client.dry_run_array(submission).await?;
        if answer.json {
            print_json(&verdict)?;
        } else {
            let all = verdict.items.len();
            let refused = verdict.items.iter().filter(|item| !item.accepted).count();
            let mut text = match refused {
                0 => format!("Its {all} jobs would be accepted.\n"),
                refused => format!("It would be refused: {refused} of its {all} jobs would.\n"),
            };
            for item in verdict.items.iter().filter(|item| !item.problems.is_empty() || !item.rewrites.is_empty()) {
                text.push_str(&format!("{} {}\n", item.array_index, told(&item.array_params)));
                text.push_str(&found(&item.problems, &item.rewrites));
            }
            print(&text)?;
        }
        return Ok(if verdict.accepted { ExitCode::SUCCESS } else { ExitCode::from(exit::REFUSED) });
    }
    let array = client.submit_array(submission).await?;
    match answer {
        Answer { json: true, wait: false, .. } => print_json(&array)?,
        // With --wait there is one job a line, as it ended.
        Answer { json: true, .. } => {}
        Answer { quiet: true, .. } => print(&format!("{}\n", array.array_id))?,
        Answer { .. } => {
            let mut text = format!("array {}, {} jobs\n", array.array_id, array.items.len());
            for job in &array.items {
                let params = job.array_params.as_deref().map(told).unwrap_or_default();
                text.push_str(&format!("{} {params} ({})\n", job.id, job.state));
            }
            print(&text)?;
        }
    }
    let mut status = ExitCode::SUCCESS;
    if answer.wait {
        for job in &array.items {
            let ended = follow::wait_for(client, job.id, answer.json).await?;
            // The first that did not succeed speaks for the array.
            if status == ExitCode::SUCCESS {
                status = ended;
            }
        }
    }
    Ok(status)
}

/// Cancel jobs.
#[derive(Debug, Args)]
pub(super) struct Cancel {
    /// Ids of the jobs, their first digits, or their external ids.
    #[arg(required_unless_present = "array")]
    ids: Vec<String>,
    /// All jobs of this array that have not ended.
    #[arg(long, value_name = "ID", conflicts_with = "ids")]
    array: Option<ArrayId>,
}

impl Cancel {
    pub(super) async fn run(self, client: &Client, json: bool) -> anyhow::Result<()> {
        let Some(array) = self.array else { return jobs::operate(&self.ids, client, "cancel", None, json).await };
        let filter = CancelFilter { array_id: Some(array.to_string()), ..CancelFilter::default() };
        let answer = client.cancel_many(&CancelMany { ids: None, filter: Some(filter) }).await?;
        if json {
            return print_json(&answer);
        }
        let mut text = String::new();
        for item in &answer.items {
            let became = match (item.state, &item.problem) {
                (Some(state), _) => state.to_string(),
                (None, Some(problem)) => printable(&problem.detail),
                (None, None) => "not cancelled".to_owned(),
            };
            text.push_str(&format!("{} {became}\n", printable(&item.id)));
        }
        print(&text)?;
        let failed = answer.items.iter().filter(|item| item.state.is_none()).count();
        anyhow::ensure!(!answer.items.is_empty(), "no job of an array {array} waits or runs");
        anyhow::ensure!(failed == 0, "{failed} jobs could not be cancelled");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_json_where_they_can_be_and_text_otherwise() {
        let read = |text: &str| values(text).map(|(key, values)| (key, Value::Array(values)));
        assert_eq!(read("lr=0.1,1e-2"), Ok(("lr".into(), json!([0.1, 0.01]))));
        assert_eq!(read("opt=adam,sgd,null,true"), Ok(("opt".into(), json!(["adam", "sgd", null, true]))));
        assert_eq!(read("/model/layers=[[64],[64,64]]"), Ok(("/model/layers".into(), json!([[64], [64, 64]]))));
        let twice = params(vec![("lr".into(), vec![1.into()]), ("lr".into(), vec![2.into()])]);
        assert!(twice.is_err_and(|error| error.to_string().contains("given twice")));
        for wrong in ["lr", "=1", "a=[1", "a={}", "a=1,18446744073709551616", "a=[[18446744073709551616]]"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
