//! Files that never come into force: how long until their error is shown, what others feel of it, and what memory stays.

use crate::beside::{Others, given_back, resident_bytes};
use crate::guest::{Guest, MISSING_EXPORT, UNKNOWN_IMPORT, WRONG_TYPES};
use crate::hostile;
use serde_json::{Value, json};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use taxiway_plugin_host::{Context, JobView, Limits, PluginError, PluginHost};

/// So that the one that takes minutes ends within the patience of whoever runs this.
const COMPILE_TIMEOUT: Duration = Duration::from_secs(2);

/// Bytes of the file that is larger than any may be.
const HUGE: u64 = 200 << 20;

/// What each file holds; none: nothing, at its full size.
fn files() -> Vec<(&'static str, Option<Vec<u8>>)> {
    let text = |text: &str| Some(wat::parse_str(text).expect("it is component text"));
    let harmless = Guest::harmless().build();
    vec![
        ("missing export", text(MISSING_EXPORT)),
        ("wrong types", text(WRONG_TYPES)),
        ("unknown import", text(UNKNOWN_IMPORT)),
        ("core module", text("(module)")),
        ("truncated file", Some(harmless[..harmless.len() / 2].to_vec())),
        ("200 MB file", None),
        ("minutes to compile", Some(Guest::slow_to_compile().build())),
    ]
}

/// One row for each file, which is dropped into the folder of a host with a plugin that is called again and again.
pub async fn measure(compiler: PathBuf, job: &JobView, context: &Context) -> Value {
    let aside = tempfile::tempdir().expect("a folder");
    let plugins_dir = aside.path().join("plugins");
    std::fs::create_dir(&plugins_dir).expect("a folder");
    std::fs::write(plugins_dir.join("good.wasm"), Guest::harmless().build()).expect("a file");
    let limits = Limits { compile_timeout: COMPILE_TIMEOUT, ..Limits::default() };
    let host = hostile::host(aside.path(), compiler, limits).await;
    let good = host.plugin("good").expect("it loads");
    let mut rows = Vec::new();
    for (name, content) in files() {
        let file = name.replace(' ', "-");
        let before = resident_bytes();
        let others = Others::start(&good, job, context);
        let begun = Instant::now();
        put(aside.path(), &plugins_dir.join(format!("{file}.wasm")), content.as_deref());
        let error = refused(&host, &file).await;
        let took = begun.elapsed();
        let slowest = others.slowest().await;
        rows.push(json!({
            "file": name,
            "error": error.message,
            "refused_ms": took.as_secs_f64() * 1e3,
            "others_slowest_ms": slowest.as_secs_f64() * 1e3,
            "memory_kept_mib": hostile::in_mib(before, given_back(before).await),
        }));
    }
    json!({"compile_timeout_ms": COMPILE_TIMEOUT.as_millis(), "files": rows})
}

/// Puts a file in its place in one step.
fn put(aside: &Path, path: &Path, content: Option<&[u8]>) {
    let whole = aside.join("aside");
    let mut file = File::create(&whole).expect("a file");
    match content {
        Some(content) => file.write_all(content).expect("it takes all of it"),
        None => file.set_len(HUGE).expect("it takes no room"),
    }
    std::fs::rename(whole, path).expect("one file system");
}

/// Why the plugin of this name is not in force, when that is known.
async fn refused(host: &PluginHost, name: &str) -> PluginError {
    let mut changes = host.status_changes();
    loop {
        changes.borrow_and_update();
        let found = host.plugins().into_iter().find(|status| status.name == name);
        if let Some(error) = found.and_then(|status| status.error) {
            return error;
        }
        changes.changed().await.expect("the host lives");
    }
}
