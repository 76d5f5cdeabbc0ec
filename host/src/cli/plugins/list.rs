//! `taxiway plugin list`

use clap::Args;
use serde_json::Value;

use super::super::client::Client;
use super::super::terminal::{Style, print, print_json, printable, stdout_style, table};

/// List the plugins of the service and how they stand.
#[derive(Debug, Args)]
pub(super) struct List {
    /// Show everything about each of them.
    #[arg(long, short)]
    long: bool,
}

impl List {
    pub(super) async fn run(self, client: &Client, json: bool) -> anyhow::Result<()> {
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
        let style = stdout_style();
        if self.long {
            let blocks: Vec<String> = plugins.items.iter().map(|plugin| everything(plugin, style)).collect();
            return print(&blocks.join("\n"));
        }
        let rows: Vec<Vec<String>> = plugins.items.iter().map(row).collect();
        let paint = |row: usize, column: usize, cell: String| match column {
            2 if !plugins.items[row]["error"].is_null() => style.red(&cell),
            _ => cell,
        };
        let headings = ["NAME", "VERSION", "STATE", "HOOKS", "MODE", "CALLS", "FAILED", "P50", "P99"];
        let mut shown = table(&headings, &rows, paint, style);
        for plugin in plugins.items.iter().filter(|plugin| !plugin["error"].is_null()) {
            shown.push_str(&error_lines(plugin, style));
        }
        print(&shown)
    }
}

fn row(plugin: &Value) -> Vec<String> {
    vec![
        text(plugin, "name"),
        text(plugin, "version"),
        text(plugin, "state"),
        texts(&plugin["hooks"]),
        text(plugin, "mode"),
        number(&plugin["calls"]),
        number(&plugin["failures"]),
        duration(&plugin["p50_seconds"]),
        duration(&plugin["p99_seconds"]),
    ]
}

/// What is wrong with the newest version, and what to do.
fn error_lines(plugin: &Value, style: Style) -> String {
    let error = &plugin["error"];
    let (name, message, advice) = (text(plugin, "name"), text(error, "message"), text(error, "advice"));
    format!("{} {name}: {message}\n  {advice}\n", style.red("error:"))
}

fn everything(plugin: &Value, style: Style) -> String {
    let grants = &plugin["grants"];
    let component = match plugin["bundled"].as_str() {
        Some(name) => format!("bundled {}", printable(name)),
        None => text(plugin, "component"),
    };
    // Nothing is loaded while there is none.
    let limits = plugin["memory_bytes"].as_u64().map_or_else(String::new, |bytes| {
        let memory = if bytes >> 20 == 0 { format!("{} KiB", bytes >> 10) } else { format!("{} MiB", bytes >> 20) };
        format!("{} a call, {memory}", duration(&plugin["timeout_seconds"]))
    });
    let loaded = match (&plugin["load_seconds"], &plugin["compile_seconds"]) {
        (Value::Null, _) => String::new(),
        (load, Value::Null) => format!("in {}, its code was in the cache", duration(load)),
        (load, compile) => format!("in {}, of which compiling took {}", duration(load), duration(compile)),
    };
    let calls = format!(
        "{}, of which {} failed; p50 {}, p99 {}",
        number(&plugin["calls"]),
        number(&plugin["failures"]),
        duration(&plugin["p50_seconds"]),
        duration(&plugin["p99_seconds"]),
    );
    let last_failure = match &plugin["last_failure"] {
        Value::Null => String::new(),
        failure => format!(
            "{} {}: {} ({})",
            text(failure, "at"),
            text(failure, "hook"),
            text(failure, "message"),
            text(failure, "kind")
        ),
    };
    let lines = [
        ("", text(plugin, "summary")),
        ("state", text(plugin, "state")),
        ("version", text(plugin, "version")),
        ("component", component),
        ("sha256", text(plugin, "sha256")),
        ("hooks", texts(&plugin["hooks"])),
        ("mode", format!("{}, on_error = {}", text(plugin, "mode"), text(plugin, "on_error"))),
        ("order", number(&plugin["order"])),
        ("stages", texts(&plugin["stages"])),
        ("profiles", texts(&plugin["profiles"])),
        ("limits", limits),
        ("http", texts(&grants["http"])),
        ("private", texts(&grants["allow_private"])),
        ("read", texts(&grants["read"])),
        ("env", texts(&grants["env"])),
        ("secrets", texts(&grants["secrets"])),
        ("loaded", loaded),
        ("calls", calls),
        ("last failure", last_failure),
        ("warnings", texts(&plugin["warnings"])),
    ];
    let mut block = format!("{}\n", style.bold(&text(plugin, "name")));
    for (name, value) in lines.iter().filter(|(_, value)| !value.is_empty()) {
        block.push_str(&format!("  {name:<13} {value}\n"));
    }
    if !plugin["error"].is_null() {
        block.push_str(&error_lines(plugin, style));
    }
    block
}

fn text(value: &Value, key: &str) -> String {
    value[key].as_str().map(printable).unwrap_or_default()
}

fn texts(value: &Value) -> String {
    let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
    items.iter().filter_map(Value::as_str).map(printable).collect::<Vec<_>>().join(", ")
}

fn number(value: &Value) -> String {
    value.as_i64().map(|number| number.to_string()).unwrap_or_default()
}

/// Seconds in the unit that fits.
pub(super) fn duration(value: &Value) -> String {
    match value.as_f64() {
        None => "-".to_owned(),
        Some(seconds) if seconds < 1e-3 => format!("{:.0} µs", seconds * 1e6),
        Some(seconds) if seconds < 1.0 => format!("{:.1} ms", seconds * 1e3),
        Some(seconds) => format!("{seconds:.1} s"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn times_are_told_in_the_unit_that_fits() {
        let told = [json!(0.000_047), json!(0.0125), json!(2.04), Value::Null].map(|value| duration(&value));
        assert_eq!(told, ["47 µs", "12.5 ms", "2.0 s", "-"]);
    }

    #[test]
    fn everything_about_a_plugin_is_told_with_its_error_and_advice_and_nothing_of_what_is_not_there() {
        let plugin = json!({
            "name": "guard", "state": "in_force", "version": "1.0.0", "component": "guard.wasm", "sha256": "ab",
            "hooks": ["validate", "complete"], "mode": "enforce", "on_error": "reject", "order": 0, "calls": 3, "failures": 1,
            "grants": {"http": ["https://a.example"], "secrets": []}, "timeout_seconds": 2.0, "memory_bytes": 134_217_728,
            "error": {"message": "it broke", "advice": "Mend it."},
        });
        let told = everything(&plugin, stdout_style());
        for part in
            ["validate, complete", "https://a.example", "2.0 s a call, 128 MiB", "guard: it broke", "  Mend it."]
        {
            assert!(told.contains(part), "{part}: {told}");
        }
        assert!(!told.contains("secrets") && !told.contains("last failure"), "{told}");
    }
}
