//! Is this a component that this service can call? Sniffing, versions, linking, probing.

use super::LoadError;
use crate::bindings::types::{Context, HookError, Job, Problem};
use crate::bindings::{complete, metadata, rewrite, validate};
use crate::plugin::Hooks;
use crate::runtime::Runtime;
use crate::text;
use wasmtime::Engine;
use wasmtime::component::types::{self, ComponentInstance, ComponentItem};
use wasmtime::component::{Component, ComponentNamedList, Lift, Lower};

/// The package that this service speaks, as in `wit/plugin.wit`.
pub const SPEAKS: &str = "taxiway:plugin@0.1.0";
const PACKAGE: &str = "taxiway:plugin/";
const VERSION: (u64, u64) = (0, 1);

/// Looks at the first bytes, so that common mix-ups get their own advice.
pub fn sniff(bytes: &[u8]) -> Result<(), LoadError> {
    match bytes {
        [0, b'a', b's', b'm', 0x0d, 0, 1, 0, ..] => Ok(()),
        [0, b'a', b's', b'm', 1, 0, 0, 0, ..] => Err(LoadError::CoreModule),
        [0x7f, b'E', b'L', b'F', ..] => Err(LoadError::Compiled),
        [] => Err(LoadError::NotWasm("nothing, it is empty".to_owned())),
        other => {
            let start = &other[..other.len().min(8)];
            Err(LoadError::NotWasm(format!(
                "{} ({})",
                hex::encode(start),
                text::clean(&String::from_utf8_lossy(start), 32)
            )))
        }
    }
}

/// Links the component and finds its hooks.
pub fn link(runtime: &Runtime, component: &Component) -> Result<Hooks, LoadError> {
    let ty = component.component_type();
    let imports: Vec<String> = ty.imports(&runtime.engine).map(|(name, _)| name.to_owned()).collect();
    let exports: Vec<String> = ty.exports(&runtime.engine).map(|(name, _)| name.to_owned()).collect();
    for name in imports.iter().chain(&exports) {
        check_version(name)?;
    }
    let linked = runtime.linker.instantiate_pre(component).map_err(|error| link_error(&imports, &error))?;
    for (interface, check) in EXPORTS {
        check_types(runtime, &ty, interface, *check)?;
    }
    let has =
        |interface: &str| component.get_export_index(None, format!("{PACKAGE}{interface}@0.1.0").as_str()).is_some();
    let hooks = Hooks {
        metadata: has("metadata")
            .then(|| metadata::MetadataHookPre::new(linked.clone()))
            .transpose()
            .map_err(|error| wrong_types("metadata", &error))?,
        validate: has("validate")
            .then(|| validate::ValidateHookPre::new(linked.clone()))
            .transpose()
            .map_err(|error| wrong_types("validate", &error))?,
        rewrite: has("rewrite")
            .then(|| rewrite::RewriteHookPre::new(linked.clone()))
            .transpose()
            .map_err(|error| wrong_types("rewrite", &error))?,
        complete: has("complete")
            .then(|| complete::CompleteHookPre::new(linked.clone()))
            .transpose()
            .map_err(|error| wrong_types("complete", &error))?,
    };
    if hooks.names().is_empty() { Err(LoadError::NoHook) } else { Ok(hooks) }
}

type Check = fn(&ComponentInstance, &Engine, &types::Component) -> wasmtime::Result<()>;

/// The interfaces that a component may export. The generated bindings check a function's types only when it is about to
/// be called; a plugin with wrong ones must not come into force.
const EXPORTS: &[(&str, Check)] = &[
    ("metadata", |instance, engine, cx| {
        use metadata::exports::taxiway::plugin::metadata::Description;
        check_function::<(), (Description,)>(instance, engine, cx, "describe")?;
        check_function::<(String,), (Vec<Problem>,)>(instance, engine, cx, "check-settings")
    }),
    ("validate", |instance, engine, cx| {
        check_function::<(Job, Context), (Result<Vec<Problem>, HookError>,)>(instance, engine, cx, "validate")
    }),
    ("rewrite", |instance, engine, cx| {
        use rewrite::exports::taxiway::plugin::rewrite::Change;
        check_function::<(Job, Context), (Result<Option<Change>, HookError>,)>(instance, engine, cx, "rewrite")
    }),
    ("complete", |instance, engine, cx| {
        use complete::exports::taxiway::plugin::complete::{Delivery, Outcome};
        check_function::<(Job, Outcome, Delivery), (Result<(), HookError>,)>(instance, engine, cx, "completed")
    }),
];

fn check_function<Params, Return>(
    instance: &ComponentInstance,
    engine: &Engine,
    component: &types::Component,
    name: &str,
) -> wasmtime::Result<()>
where
    Params: ComponentNamedList + Lower,
    Return: ComponentNamedList + Lift,
{
    match instance.get_export(engine, name).map(|export| export.ty) {
        Some(ComponentItem::ComponentFunc(function)) => function
            .typecheck::<Params, Return>(&component.instance_type())
            .map_err(|error| error.context(format!("function `{name}`"))),
        Some(_) => Err(wasmtime::format_err!("`{name}` is no function")),
        None => Err(wasmtime::format_err!("function `{name}` is missing")),
    }
}

fn check_types(
    runtime: &Runtime,
    component: &types::Component,
    interface: &str,
    check: Check,
) -> Result<(), LoadError> {
    let prefix = format!("{PACKAGE}{interface}@");
    let found = component.exports(&runtime.engine).find(|(name, _)| name.starts_with(&prefix));
    match found.map(|(_, export)| export.ty) {
        None => Ok(()),
        Some(ComponentItem::ComponentInstance(instance)) => {
            check(&instance, &runtime.engine, component).map_err(|error| wrong_types(interface, &error))
        }
        Some(_) => Err(wrong_types(interface, &wasmtime::format_err!("it is no interface"))),
    }
}

fn wrong_types(interface: &str, error: &wasmtime::Error) -> LoadError {
    LoadError::WrongTypes {
        part: format!("its `{interface}`"),
        speaks: SPEAKS,
        detail: text::clean(&format!("{error:#}"), 500),
    }
}

/// Every `taxiway:plugin` interface must be of the version that this service speaks: below 1.0, major and minor.
fn check_version(name: &str) -> Result<(), LoadError> {
    let Some(rest) = name.strip_prefix(PACKAGE) else { return Ok(()) };
    let version = rest.split_once('@').map_or("(no version)", |(_, version)| version);
    let mut numbers = version.split('.').map(|part| part.parse::<u64>().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(major), Some(minor)) if (major, minor) == VERSION => Ok(()),
        _ => Err(LoadError::Version {
            built_for: format!("taxiway:plugin@{}", text::clean(version, 40)),
            speaks: SPEAKS,
            detail: String::new(),
        }),
    }
}

/// What the linker misses. It has no types for this, only a text that names the import in backquotes.
fn link_error(imports: &[String], error: &wasmtime::Error) -> LoadError {
    let whole = format!("{error:#}");
    let named = whole.split('`').skip(1).step_by(2).find(|quoted| imports.iter().any(|import| import == quoted));
    let Some(import) = named else {
        return LoadError::WrongTypes {
            part: "an import".to_owned(),
            speaks: SPEAKS,
            detail: text::clean(&whole, 500),
        };
    };
    let shown = text::clean(import, 200);
    match import.strip_prefix(PACKAGE) {
        Some(rest) if rest.starts_with("host@") => LoadError::Version {
            built_for: format!("taxiway:plugin@{}", text::clean(rest.trim_start_matches("host@"), 40)),
            speaks: SPEAKS,
            detail: format!(" ({})", text::clean(&format!("{error:#}"), 300)),
        },
        None if import.starts_with("wasi:") && !whole.contains("implementation is missing") => LoadError::WrongTypes {
            part: format!("the import `{shown}`"),
            speaks: "WASI 0.2",
            detail: text::clean(&whole, 500),
        },
        _ => LoadError::UnknownImport(shown),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_mix_ups_are_told_apart() {
        assert!(sniff(b"\0asm\x0d\0\x01\0").is_ok());
        assert!(matches!(sniff(b"\0asm\x01\0\0\0"), Err(LoadError::CoreModule)));
        assert!(matches!(sniff(b"\x7fELF...."), Err(LoadError::Compiled)));
        assert!(matches!(sniff(b""), Err(LoadError::NotWasm(_))));
        assert!(matches!(sniff(b"<html>"), Err(LoadError::NotWasm(_))));
    }

    #[test]
    fn versions_on_the_same_track_are_spoken() {
        assert!(check_version("taxiway:plugin/validate@0.1.7").is_ok());
        assert!(check_version("wasi:cli/environment@0.2.3").is_ok());
        for other in ["taxiway:plugin/validate@0.2.0", "taxiway:plugin/host@1.1.0", "taxiway:plugin/host"] {
            let error = check_version(other).unwrap_err().to_string();
            assert!(error.contains("this server speaks taxiway:plugin@0.1.0"), "{error}");
        }
    }
}
