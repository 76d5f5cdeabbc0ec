//! The one macro that turns a type into a component.

/// Makes a component of a type: `export!(MyPlugin: Validate + Complete)`.
///
/// Lists the hooks that the type implements ([`Validate`](crate::Validate), [`Rewrite`](crate::Rewrite),
/// [`Complete`](crate::Complete)); the component has these and no others. It always says who it is, from the package's
/// name, version and description; list [`Metadata`](crate::Metadata) to add a schema and a check of the settings.
///
/// ```
/// # use taxiway_plugin::{Context, Job, Metadata, Problems, Rewrite, Change, HookError, Value, export, json};
/// struct Tag;
///
/// impl Rewrite for Tag {
///     fn rewrite(_job: &Job, _context: &Context) -> Result<Option<Change>, HookError> {
///         Ok(Some(Change::new().label("site", "lab-3")))
///     }
/// }
///
/// impl Metadata for Tag {
///     fn settings_schema() -> Option<Value> {
///         Some(json!({"type": "object", "additionalProperties": false}))
///     }
/// }
///
/// export!(Tag: Rewrite + Metadata);
/// ```
///
/// A hook that the type does not implement, or that does not exist, is a compile error:
///
/// ```compile_fail
/// struct Nothing;
/// taxiway_plugin::export!(Nothing: Validate);
/// ```
///
/// ```compile_fail
/// struct Typo;
/// taxiway_plugin::export!(Typo: Validte);
/// ```
///
/// Use it once, at the root of a `cdylib` crate.
#[macro_export]
macro_rules! export {
    ($plugin:ty: $first:ident $(+ $rest:ident)*) => {
        $crate::__export!($plugin; default; $first $($rest)*);
    };
    ($plugin:ty) => {
        ::core::compile_error!("name the hooks: export!(MyPlugin: Validate + Complete)");
    };
}

/// Takes one hook after another off the list; the second argument remembers whether `Metadata` was among them.
#[doc(hidden)]
#[macro_export]
macro_rules! __export {
    ($plugin:ty; $metadata:ident; Validate $($rest:ident)*) => {
        const _: fn() = || {
            fn implements<T: $crate::Validate>() {}
            implements::<$plugin>();
        };
        #[cfg(target_family = "wasm")]
        const _: () = {
            struct Hook;
            impl $crate::bindings::validate::exports::taxiway::plugin::validate::Guest for Hook {
                fn validate(
                    job: $crate::bindings::types::Job,
                    context: $crate::bindings::types::Context,
                ) -> ::core::result::Result<
                    ::std::vec::Vec<$crate::bindings::types::Problem>,
                    $crate::bindings::types::HookError,
                > {
                    $crate::glue::validate::<$plugin>(job, context)
                }
            }
            $crate::bindings::validate::export_validate!(Hook with_types_in $crate::bindings::validate);
        };
        $crate::__export!($plugin; $metadata; $($rest)*);
    };
    ($plugin:ty; $metadata:ident; Rewrite $($rest:ident)*) => {
        const _: fn() = || {
            fn implements<T: $crate::Rewrite>() {}
            implements::<$plugin>();
        };
        #[cfg(target_family = "wasm")]
        const _: () = {
            struct Hook;
            impl $crate::bindings::rewrite::exports::taxiway::plugin::rewrite::Guest for Hook {
                fn rewrite(
                    job: $crate::bindings::types::Job,
                    context: $crate::bindings::types::Context,
                ) -> ::core::result::Result<
                    ::core::option::Option<$crate::bindings::rewrite::exports::taxiway::plugin::rewrite::Change>,
                    $crate::bindings::types::HookError,
                > {
                    $crate::glue::rewrite::<$plugin>(job, context)
                }
            }
            $crate::bindings::rewrite::export_rewrite!(Hook with_types_in $crate::bindings::rewrite);
        };
        $crate::__export!($plugin; $metadata; $($rest)*);
    };
    ($plugin:ty; $metadata:ident; Complete $($rest:ident)*) => {
        const _: fn() = || {
            fn implements<T: $crate::Complete>() {}
            implements::<$plugin>();
        };
        #[cfg(target_family = "wasm")]
        const _: () = {
            struct Hook;
            impl $crate::bindings::complete::exports::taxiway::plugin::complete::Guest for Hook {
                fn completed(
                    job: $crate::bindings::types::Job,
                    outcome: $crate::bindings::complete::exports::taxiway::plugin::complete::Outcome,
                    delivery: $crate::bindings::complete::exports::taxiway::plugin::complete::Delivery,
                ) -> ::core::result::Result<(), $crate::bindings::types::HookError> {
                    $crate::glue::completed::<$plugin>(job, outcome, delivery)
                }
            }
            $crate::bindings::complete::export_complete!(Hook with_types_in $crate::bindings::complete);
        };
        $crate::__export!($plugin; $metadata; $($rest)*);
    };
    ($plugin:ty; $metadata:ident; Metadata $($rest:ident)*) => {
        const _: fn() = || {
            fn implements<T: $crate::Metadata>() {}
            implements::<$plugin>();
        };
        $crate::__export!($plugin; own; $($rest)*);
    };
    ($plugin:ty; own;) => {
        $crate::__export_metadata!($plugin);
    };
    ($plugin:ty; default;) => {
        $crate::__export_metadata!($crate::glue::NoSettings);
    };
    ($plugin:ty; $metadata:ident; $unknown:ident $($rest:ident)*) => {
        ::core::compile_error!(::core::concat!(
            "`", ::core::stringify!($unknown), "` is no hook; there are Validate, Rewrite, Complete and Metadata"
        ));
    };
}

/// Exports `metadata` with the facts of the calling package.
#[doc(hidden)]
#[macro_export]
macro_rules! __export_metadata {
    ($source:ty) => {
        #[cfg(target_family = "wasm")]
        const _: () = {
            struct Hook;
            impl $crate::bindings::metadata::exports::taxiway::plugin::metadata::Guest for Hook {
                fn describe() -> $crate::bindings::metadata::exports::taxiway::plugin::metadata::Description {
                    $crate::glue::describe::<$source>(
                        ::core::env!("CARGO_PKG_NAME"),
                        ::core::env!("CARGO_PKG_VERSION"),
                        ::core::env!("CARGO_PKG_DESCRIPTION"),
                    )
                }
                fn check_settings(
                    settings: ::std::string::String,
                ) -> ::std::vec::Vec<$crate::bindings::types::Problem> {
                    $crate::glue::check_settings::<$source>(&settings)
                }
            }
    $crate::bindings::metadata::export_metadata!(Hook with_types_in $crate::bindings::metadata);
        };
    };
}
