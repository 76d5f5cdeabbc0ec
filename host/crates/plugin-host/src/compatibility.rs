//! Components live longer than servers: one that was built for this package loads on the next one of its track.

#[path = "../tests/all/guest.rs"]
#[allow(dead_code, reason = "the tests of the whole host use all of it")]
mod guest;

use crate::bindings::imports::taxiway::plugin::host as current;
use crate::egress::{Egress, Policy};
use crate::limits::Limits;
use crate::runtime::{Runtime, linker_of_wasi};
use crate::secret::Secrets;
use crate::state::{Room, State, Trace};
use crate::tls::Tls;
use crate::turn::Turn;
use guest::Guest;
use std::sync::Arc;
use wasmtime::Store;
use wasmtime::component::{Component, HasSelf};

/// `wit/plugin.wit` as a later release could have it: `0.1.1`, with a function more in `host` and an interface more that
/// a plugin may export.
const NEXT: &str = include_str!("../tests/next/plugin.wit");

mod next {
    wasmtime::component::bindgen!({
        path: "tests/next",
        inline: "package taxiway:compatibility; world next {
            import taxiway:plugin/host@0.1.1;
            export taxiway:plugin/validate@0.1.1;
        }",
        world: "taxiway:compatibility/next",
        exports: { default: async },
    });
}

use next::taxiway::plugin::{host, types};

impl host::Host for State {
    fn log(&mut self, _: host::Level, message: String) {
        current::Host::log(self, current::Level::Info, message);
    }

    fn settings(&mut self) -> String {
        current::Host::settings(self)
    }

    fn secret(&mut self, name: String) -> Option<String> {
        current::Host::secret(self, name)
    }

    fn uptime_ms(&mut self) -> u64 {
        0
    }
}

#[test]
fn the_next_package_is_this_one_with_additions_that_the_rules_permit() {
    let secret = "    secret: func(name: string) -> option<string>;\n";
    let added = "    /// One more function than before.\n    uptime-ms: func() -> u64;\n";
    let interface = "\n/// One more interface, which nobody has to export.\ninterface audit {\n    audit: func(what: string);\n}\nworld audit-hook { export audit; }\n";
    let now = include_str!("../../../../wit/plugin.wit");
    let next = now.replace("taxiway:plugin@0.1.0", "taxiway:plugin@0.1.1").replace(secret, &format!("{secret}{added}"));
    assert_eq!(NEXT, next + interface, "write tests/next/plugin.wit anew when wit/plugin.wit has changed");
}

#[tokio::test]
async fn a_component_built_for_this_package_is_called_by_a_host_of_the_next_one() {
    let guest = Guest::validating(
        "(call $settings (i32.const 4096)) (call $log (i32.const 2) (i32.load (i32.const 4096)) (i32.load (i32.const 4100)))
         i32.const 1024",
    );
    let runtime = Runtime::start(Limits::default(), Tls::new(None).unwrap()).unwrap();
    let component = Component::new(&runtime.engine, guest.build()).unwrap();
    // As the host links it, but for the package's version.
    let mut linker = linker_of_wasi(&runtime.engine).unwrap();
    host::add_to_linker::<State, HasSelf<State>>(&mut linker, |state| state).unwrap();
    let hook = next::NextPre::new(linker.instantiate_pre(&component).unwrap()).unwrap();
    assert!(component.get_export_index(None, "taxiway:plugin/audit@0.1.1").is_none(), "the new interface is optional");

    let trace = Arc::new(Trace::new(&runtime.limits));
    let policy = Policy {
        plugin: "old".into(),
        hosts: Vec::new(),
        allow_private: Vec::new(),
        limits: runtime.limits.clone(),
        secrets: Arc::default(),
        tls: runtime.tls.clone(),
    };
    let state = State::new(
        &runtime.limits,
        Room { memory: 1 << 20, instances: 10 },
        r#"{"of": "old"}"#.into(),
        Arc::default(),
        Egress::new(Arc::new(policy), false, trace.clone()),
        Turn::first(runtime.ticker.ticks()),
        trace.clone(),
    );
    let mut store = Store::new(&runtime.engine, state);
    store.limiter_async(|state| &mut state.limiter);
    // Nothing ticks here.
    store.set_epoch_deadline(1);
    let job = types::Job { id: "1".into(), name: "old".into(), attempt: 1, config: "{}".into(), details: "{}".into() };
    let context = types::Context { stage: "submit".into(), dry_run: false, gpus: Vec::new(), details: "{}".into() };
    let instance = hook.instantiate_async(&mut store).await.unwrap();
    let answer = instance.taxiway_plugin_validate().call_validate(&mut store, &job, &context).await.unwrap();
    assert!(answer.unwrap().is_empty());
    let lines = trace.output.lines(&Secrets::default());
    assert_eq!(lines.iter().map(|line| line.text.as_str()).collect::<Vec<_>>(), [r#"{"of": "old"}"#]);
}
