//! The Rust side of `wit/plugin.wit`, one generated module for each disjoint world, all sharing one set of types.

/// What the host gives every plugin, and the types that the hooks share.
pub mod imports {
    wasmtime::component::bindgen!({
        path: "../../../wit",
        world: "taxiway:plugin/imports",
    });
}

/// The types alone, so that every hook's module names the same Rust types.
pub mod shared {
    wasmtime::component::bindgen!({
        path: "../../../wit",
        inline: "package taxiway:host-types; world shared { import taxiway:plugin/types@0.1.0; }",
        world: "taxiway:host-types/shared",
    });
}

pub use shared::taxiway::plugin::types;

/// `metadata`: who the plugin is.
pub mod metadata {
    wasmtime::component::bindgen!({
        path: "../../../wit",
        world: "taxiway:plugin/metadata-hook",
        with: { "taxiway:plugin/types": crate::bindings::types },
        exports: { default: async },
    });
}

/// `validate`: may this job run?
pub mod validate {
    wasmtime::component::bindgen!({
        path: "../../../wit",
        world: "taxiway:plugin/validate-hook",
        with: { "taxiway:plugin/types": crate::bindings::types },
        exports: { default: async },
    });
}

/// `rewrite`: what should its configuration become?
pub mod rewrite {
    wasmtime::component::bindgen!({
        path: "../../../wit",
        world: "taxiway:plugin/rewrite-hook",
        with: { "taxiway:plugin/types": crate::bindings::types },
        exports: { default: async },
    });
}

/// `complete`: what should happen now that it has ended?
pub mod complete {
    wasmtime::component::bindgen!({
        path: "../../../wit",
        world: "taxiway:plugin/complete-hook",
        with: { "taxiway:plugin/types": crate::bindings::types },
        exports: { default: async },
    });
}
