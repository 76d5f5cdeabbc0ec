//! What Prometheus reads of plugins.
//!
//! There is a series for each plugin in the folder, hook and kind of failure: no label is chosen by a job or by a plugin's answer.

use taxiway_plugin_host::{HookMetrics, PluginMetrics, PluginState};

use super::prometheus::Text;

impl Text {
    pub(super) fn plugins(self, plugins: &[PluginMetrics]) -> Self {
        let text = self.gauge("taxiway_plugin_state", "1 for the state that a plugin is in.");
        let text = plugins.iter().fold(text, |text, plugin| {
            text.value(&format!("{{plugin=\"{}\",state=\"{}\"}}", plugin.plugin, state(plugin.state)), 1.0)
        });
        let text = text
            .counter("taxiway_plugin_loads_total", "Versions that came into force, or did not load, since the start.");
        let text = plugins.iter().fold(text, |text, plugin| {
            let labels = |result| format!("{{plugin=\"{}\",result=\"{result}\"}}", plugin.plugin);
            text.value(&labels("in_force"), plugin.loads as f64).value(&labels("failed"), plugin.failed_loads as f64)
        });
        let text = text
            .counter("taxiway_plugin_http_requests_total", "HTTP requests that a plugin asked for since the start.");
        let text = plugins.iter().fold(text, |text, plugin| text.value(&of(plugin), plugin.requests as f64));
        let text = text.counter("taxiway_plugin_http_requests_refused_total", "Those of them that were refused.");
        let text = plugins.iter().fold(text, |text, plugin| text.value(&of(plugin), plugin.refused_requests as f64));

        let hooks = || plugins.iter().flat_map(|plugin| &plugin.hooks);
        let text = text.counter("taxiway_plugin_calls_total", "Calls of a plugin since the start.");
        let text = hooks().fold(text, |text, hook| text.value(&format!("{{{}}}", labels(hook)), hook.calls as f64));
        let text =
            text.counter("taxiway_plugin_call_failures_total", "Those of them that failed, by the kind of failure.");
        let text = hooks().fold(text, |text, hook| {
            hook.failures.iter().fold(text, |text, (kind, count)| {
                text.value(&format!("{{{},kind=\"{kind}\"}}", labels(hook)), *count as f64)
            })
        });
        let text = text.gauge("taxiway_plugin_peak_memory_bytes", "Linear memory of the largest call since the start.");
        let text = hooks()
            .fold(text, |text, hook| text.value(&format!("{{{}}}", labels(hook)), hook.peak_memory_bytes as f64));
        let text = text.metric("taxiway_plugin_call_seconds", "histogram", "How long calls of a plugin took.");
        hooks().fold(text, Text::calls)
    }

    /// The histogram of one hook.
    fn calls(self, hook: &HookMetrics) -> Self {
        let labels = labels(hook);
        let infinite = (f64::INFINITY, hook.calls);
        let text = hook.buckets.iter().chain([&infinite]).fold(self, |text, (bound, count)| {
            let bound = if bound.is_finite() { bound.to_string() } else { "+Inf".to_owned() };
            text.sample("_bucket", &format!("{{{labels},le=\"{bound}\"}}"), *count as f64)
        });
        let labels = format!("{{{labels}}}");
        text.sample("_sum", &labels, hook.seconds).sample("_count", &labels, hook.calls as f64)
    }
}

// Names of plugins are letters, digits, `-`, `_` and `.`, the other labels are our own: nothing in them needs to be escaped.

fn of(plugin: &PluginMetrics) -> String {
    format!("{{plugin=\"{}\"}}", plugin.plugin)
}

fn labels(hook: &HookMetrics) -> String {
    format!("plugin=\"{}\",hook=\"{}\"", hook.plugin, hook.hook)
}

fn state(state: PluginState) -> &'static str {
    match state {
        PluginState::Loading => "loading",
        PluginState::Compiling => "compiling",
        PluginState::InForce => "in_force",
        PluginState::Failed => "failed",
        PluginState::Disabled => "disabled",
    }
}

#[cfg(test)]
mod tests {
    use taxiway_plugin_host::Hook;

    use super::*;

    #[test]
    fn calls_failures_times_and_loads_are_told_by_plugin_and_hook() {
        let hook = HookMetrics {
            plugin: "guard".into(),
            hook: Hook::Validate,
            calls: 5,
            failures: vec![("timeout", 2), ("trap", 1)],
            seconds: 4.5,
            buckets: vec![(0.000064, 1), (1.048576, 3)],
            peak_memory_bytes: 65536,
        };
        let guard = PluginMetrics {
            plugin: "guard".into(),
            state: PluginState::InForce,
            requests: 7,
            refused_requests: 4,
            loads: 2,
            failed_loads: 1,
            hooks: vec![hook],
        };
        let idle =
            PluginMetrics { plugin: "idle".into(), state: PluginState::Disabled, hooks: Vec::new(), ..guard.clone() };
        let text = Text::default().plugins(&[guard, idle]).0;
        for line in [
            "taxiway_plugin_state{plugin=\"guard\",state=\"in_force\"} 1",
            "taxiway_plugin_state{plugin=\"idle\",state=\"disabled\"} 1",
            "taxiway_plugin_loads_total{plugin=\"guard\",result=\"in_force\"} 2",
            "taxiway_plugin_loads_total{plugin=\"guard\",result=\"failed\"} 1",
            "taxiway_plugin_http_requests_total{plugin=\"guard\"} 7",
            "taxiway_plugin_http_requests_refused_total{plugin=\"guard\"} 4",
            "taxiway_plugin_calls_total{plugin=\"guard\",hook=\"validate\"} 5",
            "taxiway_plugin_call_failures_total{plugin=\"guard\",hook=\"validate\",kind=\"timeout\"} 2",
            "taxiway_plugin_call_failures_total{plugin=\"guard\",hook=\"validate\",kind=\"trap\"} 1",
            "taxiway_plugin_peak_memory_bytes{plugin=\"guard\",hook=\"validate\"} 65536",
            "taxiway_plugin_call_seconds_bucket{plugin=\"guard\",hook=\"validate\",le=\"0.000064\"} 1",
            "taxiway_plugin_call_seconds_bucket{plugin=\"guard\",hook=\"validate\",le=\"+Inf\"} 5",
            "taxiway_plugin_call_seconds_sum{plugin=\"guard\",hook=\"validate\"} 4.5",
            "taxiway_plugin_call_seconds_count{plugin=\"guard\",hook=\"validate\"} 5",
        ] {
            assert!(text.lines().any(|it| it == line), "{line}\n{text}");
        }
        // The samples of a metric must stand together.
        let metrics: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        let unique: std::collections::BTreeSet<&str> = metrics.iter().copied().collect();
        assert_eq!(metrics.len(), unique.len());
    }
}
