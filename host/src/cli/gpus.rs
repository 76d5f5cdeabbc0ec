//! `taxiway gpus`

use clap::{Args, Subcommand};

use super::client::Client;
use super::terminal::{print, print_json, printable, stdout_style, table};
use crate::api::wire;
use crate::queue::SlotState;

/// List the GPUs, who holds each, and how they are.
#[derive(Debug, Args)]
pub(super) struct Gpus {
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Have a GPU used again that was put into quarantine after an error.
    Release {
        /// Its UUID, as `taxiway gpus` shows it.
        uuid: String,
    },
}

impl Gpus {
    pub(super) async fn run(self, client: &Client, json: bool) -> anyhow::Result<()> {
        let gpus = match self.verb {
            None => {
                let gpus = client.gpus().await?;
                if json {
                    return print_json(&gpus);
                }
                gpus.items
            }
            Some(Verb::Release { uuid }) => {
                let gpu = client.release_gpu(&uuid).await?;
                if json {
                    return print_json(&gpu);
                }
                vec![gpu]
            }
        };
        let rows: Vec<Vec<String>> = gpus.iter().map(row).collect();
        let style = stdout_style();
        let paint = |row: usize, column: usize, cell: String| match (column, gpus[row].state) {
            (1, SlotState::Quarantined) => style.red(&cell),
            _ => cell,
        };
        print(&table(&["GPU", "STATE", "MEMORY", "UTIL", "TEMP", "NAME", "UUID", ""], &rows, paint, style))
    }
}

fn row(gpu: &wire::Gpu) -> Vec<String> {
    let state = match gpu.state {
        SlotState::Free => "free",
        SlotState::Held => "held",
        SlotState::Blocked => "blocked",
        SlotState::Quarantined => "quarantined",
    };
    let gibibytes = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    let memory = match (gpu.memory_free_bytes, gpu.memory_total_bytes) {
        (Some(free), Some(total)) => {
            format!("{:.1}/{:.1} GiB", gibibytes(total.saturating_sub(free)), gibibytes(total))
        }
        _ => "-".into(),
    };
    let why = gpu.reason.as_ref().map(|reason| reason.message.clone()).or_else(|| gpu.error.clone());
    let job = gpu.job_id.map(|job| format!("job {job}"));
    vec![
        printable(&gpu.label),
        state.into(),
        memory,
        gpu.utilization.map_or_else(|| "-".into(), |share| format!("{:.0}%", share * 100.0)),
        gpu.temperature_celsius.map_or_else(|| "-".into(), |celsius| format!("{celsius} °C")),
        gpu.name.as_deref().map_or_else(|| "-".into(), printable),
        gpu.uuid.as_deref().map_or_else(|| "-".into(), printable),
        printable(&why.or(job).unwrap_or_default()),
    ]
}
