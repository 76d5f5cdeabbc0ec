//! What wit-bindgen makes of `wit/plugin.wit`. Plugins do not see it: they use the traits and types of this crate.
//!
//! One module for each world, because the worlds are disjoint: a component has exactly the hooks whose export macros
//! its author's [`export!`](macro@crate::export) expands.

#![allow(missing_docs, reason = "generated from wit/plugin.wit, which documents every item")]

/// The functions that every plugin may call.
pub mod imports {
    wit_bindgen::generate!({
        path: "../../wit",
        world: "taxiway:plugin/imports",
    });
}

/// The `metadata` interface; it also owns the types that the hooks share.
pub mod metadata {
    wit_bindgen::generate!({
        path: "../../wit",
        world: "taxiway:plugin/metadata-hook",
        pub_export_macro: true,
        export_macro_name: "export_metadata",
        default_bindings_module: "taxiway_plugin::bindings::metadata",
    });
}

/// The records that all hooks share.
pub use metadata::taxiway::plugin::types;

/// The `validate` interface.
pub mod validate {
    wit_bindgen::generate!({
        path: "../../wit",
        world: "taxiway:plugin/validate-hook",
        with: { "taxiway:plugin/types@0.1.0": crate::bindings::types },
        pub_export_macro: true,
        export_macro_name: "export_validate",
        default_bindings_module: "taxiway_plugin::bindings::validate",
    });
}

/// The `rewrite` interface.
pub mod rewrite {
    wit_bindgen::generate!({
        path: "../../wit",
        world: "taxiway:plugin/rewrite-hook",
        with: { "taxiway:plugin/types@0.1.0": crate::bindings::types },
        pub_export_macro: true,
        export_macro_name: "export_rewrite",
        default_bindings_module: "taxiway_plugin::bindings::rewrite",
    });
}

/// The `complete` interface.
pub mod complete {
    wit_bindgen::generate!({
        path: "../../wit",
        world: "taxiway:plugin/complete-hook",
        with: { "taxiway:plugin/types@0.1.0": crate::bindings::types },
        pub_export_macro: true,
        export_macro_name: "export_complete",
        default_bindings_module: "taxiway_plugin::bindings::complete",
    });
}
