//! The plugins that come with Taxiway, as components. `build.rs` makes them from `plugins/`; a manifest asks for one by
//! `bundled = "NAME"`.

use taxiway_plugin_host::Bundled;

/// All of them.
pub static BUNDLED: &[Bundled] = &[
    Bundled { name: "config-schema", component: include_bytes!(concat!(env!("OUT_DIR"), "/config_schema.wasm")) },
    Bundled { name: "defaults", component: include_bytes!(concat!(env!("OUT_DIR"), "/defaults.wasm")) },
    Bundled { name: "webhook", component: include_bytes!(concat!(env!("OUT_DIR"), "/webhook.wasm")) },
];
