//! `taxiway plugin check`

use std::process::ExitCode;

use clap::Args;
use serde_json::json;
use taxiway_plugin_host::{LoadError, OpenError};

use super::super::Connect;
use super::super::terminal::{print, print_json, printable, stderr_style, stdout_style};
use super::{Source, unsound};

/// Say whether a plugin would be in force, and if not, why and what to do.
#[derive(Debug, Args)]
#[command(after_help = "\
Reads, checks, compiles and asks it as the service does, under the same limits, and needs no service.
Exit status 0: it would be in force.")]
pub(super) struct Check {
    #[command(flatten)]
    source: Source,
}

impl Check {
    pub(super) async fn run(self, connect: &Connect, json: bool) -> anyhow::Result<ExitCode> {
        let settings = self.source.settings(connect)?;
        let status = match self.source.open(&settings).await? {
            Ok((_, status)) => status,
            Err(OpenError::Load(error)) => return refuse(&error, json),
            Err(OpenError::Start(error)) => return Err(error.into()),
        };
        if json {
            print_json(&status)?;
            return Ok(ExitCode::SUCCESS);
        }
        let style = stdout_style();
        let hooks: Vec<&str> = status.hooks.iter().map(|hook| hook.as_str()).collect();
        let version = status.version.unwrap_or_default();
        let mut told = format!("{} {} can be used.\n", style.bold(&printable(&status.name)), printable(&version));
        let lines = [
            ("", printable(&status.summary)),
            ("hooks", hooks.join(", ")),
            ("sha256", status.sha256.unwrap_or_default()),
            ("compiled", status.compile_seconds.map_or("before".to_owned(), |took| format!("in {took:.2} s"))),
        ];
        for (name, value) in lines.iter().filter(|(_, value)| !value.is_empty()) {
            told.push_str(&format!("  {name:<9} {value}\n"));
        }
        for warning in &status.warnings {
            told.push_str(&format!("  {} {}\n", style.yellow("warning:"), printable(warning)));
        }
        print(&told)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Tells why it does not load.
pub(super) fn refuse(error: &LoadError, json: bool) -> anyhow::Result<ExitCode> {
    let (message, advice) = (error.to_string(), error.advice());
    if json {
        print_json(&json!({"state": "failed", "error": {"message": message, "advice": advice}}))?;
    } else {
        eprintln!("{} {}\n  {}", stderr_style().red("error:"), printable(&message), printable(&advice));
    }
    Ok(unsound())
}
