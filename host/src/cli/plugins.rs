//! `taxiway plugin list`

use clap::{Args, Subcommand};
use serde_json::Value;

use super::client::Client;
use super::terminal::{print, print_json, printable, stdout_style, table};

/// Look at the plugins.
#[derive(Debug, Args)]
pub(super) struct Plugin {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the plugins and how they stand.
    List,
}

impl Plugin {
    pub(super) async fn run(self, client: &Client, json: bool) -> anyhow::Result<()> {
        let Verb::List = self.verb;
        let plugins = client.plugins().await?;
        if json {
            return print_json(&plugins);
        }
        if plugins.items.is_empty() {
            eprintln!(
                "No plugins. Drop a component into the plugins folder, or a manifest like `bundled = \"defaults\"`."
            );
            return Ok(());
        }
        let text = |plugin: &Value, key: &str| plugin[key].as_str().map(printable).unwrap_or_default();
        let rows: Vec<Vec<String>> = plugins
            .items
            .iter()
            .map(|plugin| {
                vec![
                    text(plugin, "name"),
                    text(plugin, "version"),
                    text(plugin, "state"),
                    hooks(plugin),
                    text(plugin, "mode"),
                    text(&plugin["error"], "message"),
                ]
            })
            .collect();
        let style = stdout_style();
        let paint = |_: usize, column: usize, cell: String| if column == 5 { style.red(&cell) } else { cell };
        print(&table(&["NAME", "VERSION", "STATE", "HOOKS", "MODE", ""], &rows, paint, style))
    }
}

fn hooks(plugin: &Value) -> String {
    let hooks = plugin["hooks"].as_array().map(Vec::as_slice).unwrap_or_default();
    hooks.iter().filter_map(Value::as_str).map(printable).collect::<Vec<_>>().join(",")
}
