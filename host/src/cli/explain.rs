//! `taxiway explain`

use clap::Args;

use super::client::Client;
use super::outcome;
use super::submit::patch_lines;
use super::terminal::{Style, print, print_json, printable, stdout_style};
use crate::api::wire::Explanation;

/// Say why a job waits or failed, and when it is expected to start.
#[derive(Debug, Args)]
pub(super) struct Explain {
    /// Id of the job, its first digits, or its external id.
    id: String,
}

impl Explain {
    pub(super) async fn run(self, client: &Client, json: bool) -> anyhow::Result<()> {
        let id = client.resolve(&self.id).await?;
        let explanation = client.explain(id).await?;
        if json { print_json(&explanation) } else { print(&told(&explanation, stdout_style())) }
    }
}

fn told(explanation: &Explanation<'_>, style: Style) -> String {
    let mut text = String::new();
    let mut line = |label: &str, value: String| {
        text.push_str(&format!("{} {value}\n", style.bold(&format!("{label:<9}"))));
    };
    if let Some(reason) = &explanation.reason {
        line(
            "reason",
            format!("{} {}", printable(&reason.message), style.dim(&format!("({})", printable(&reason.code)))),
        );
    }
    if let Some(position) = explanation.position {
        line("position", position.to_string());
        let expected = explanation.expected_start_at.map(|at| at.to_string());
        line("expected", expected.unwrap_or_else(|| "not known".into()));
    }
    if let Some(failure) = &explanation.failure {
        line("failure", format!("{}: {}", failure.class.as_str(), printable(&failure.message)));
        if let Some(evidence) = &failure.evidence {
            line("", printable(evidence));
        }
    }
    for verdict in &explanation.verdicts {
        text.push_str(&format!(
            "{} {} {} ({} {})\n",
            style.bold("plugin"),
            printable(&verdict.plugin),
            printable(&verdict.outcome),
            printable(&verdict.stage),
            printable(&verdict.hook),
        ));
        for problem in &verdict.problems {
            text.push_str(&outcome::problem_lines(problem, style));
        }
        if let Some(patch) = &verdict.patch {
            text.push_str(&patch_lines(patch));
        }
    }
    if text.is_empty() {
        text.push_str("Nothing keeps it waiting: it runs, is being stopped, or has ended.\n");
    }
    text
}
