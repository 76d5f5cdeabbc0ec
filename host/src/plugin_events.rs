//! Tells of plugins in `GET /events`: one event when a version comes into force, when a plugin does not load, is switched
//! off, or is gone. What a person would notice in the list of plugins, a script hears of.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use taxiway_job::Time;
use taxiway_plugin_host::{PluginHost, PluginState, PluginStatus};
use tokio_util::sync::CancellationToken;

use crate::store::{Change, Store};

/// Writes events until `stop` is cancelled.
pub async fn tell(plugins: PluginHost, store: Store, stop: CancellationToken) {
    let mut changes = plugins.status_changes();
    let mut known = BTreeMap::new();
    loop {
        changes.borrow_and_update();
        let news = news(&mut known, &plugins.plugins());
        if !news.is_empty() {
            let at = Time::now();
            let change = |(kind, data)| Change::Plugin { kind, data, at };
            // Nobody waits for it: the store writes it when the disk takes it. An error means that the store has stopped.
            if store.record(news.into_iter().map(change).collect()).await.is_err() {
                return;
            }
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = stop.cancelled() => return,
        }
    }
}

/// How a plugin stands, as far as an event tells.
#[derive(Debug, Clone, PartialEq)]
struct Standing {
    kind: &'static str,
    data: Map<String, Value>,
}

/// What is new of the plugins, by name. A plugin that is being loaded stands as before.
fn news(known: &mut BTreeMap<String, Standing>, plugins: &[PluginStatus]) -> Vec<(&'static str, Map<String, Value>)> {
    let mut news = Vec::new();
    known.retain(|name, _| {
        let stays = plugins.iter().any(|plugin| plugin.name == *name);
        if !stays {
            news.push(("plugin.removed", Map::from_iter([("plugin".to_owned(), json!(name))])));
        }
        stays
    });
    for plugin in plugins {
        let Some(standing) = standing(plugin) else { continue };
        if known.get(&plugin.name) != Some(&standing) {
            known.insert(plugin.name.clone(), standing.clone());
            news.push((standing.kind, standing.data));
        }
    }
    news
}

fn standing(plugin: &PluginStatus) -> Option<Standing> {
    let kind = match (plugin.state, &plugin.error) {
        (PluginState::Loading | PluginState::Compiling, _) => return None,
        (PluginState::InForce, None) => "plugin.in_force",
        // With an error beside it an older version is in force: that the newest one is not is the news.
        (PluginState::InForce | PluginState::Failed, _) => "plugin.failed",
        (PluginState::Disabled, _) => "plugin.disabled",
    };
    let error = plugin.error.as_ref().map(|error| json!({"message": error.message, "advice": error.advice}));
    let data = [
        ("plugin", json!(plugin.name)),
        ("version", json!(plugin.version)),
        ("sha256", json!(plugin.sha256)),
        ("error", error.unwrap_or_default()),
    ];
    Some(Standing { kind, data: data.into_iter().map(|(name, value)| (name.to_owned(), value)).collect() })
}
