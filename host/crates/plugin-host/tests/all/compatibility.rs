//! Components live longer than servers: one that was built for this package loads on the next one of its track.

use crate::guest::Guest;
use wasmtime::component::{Component, HasSelf, Linker};
use wasmtime::{Config, Engine, Store};

/// `wit/plugin.wit` as a later release could have it: `0.1.1`, with a function more in `host` and an interface more that
/// a plugin may export.
const NEXT: &str = include_str!("../next/plugin.wit");

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

#[derive(Default)]
struct NextHost {
    logged: Vec<String>,
}

impl host::Host for NextHost {
    fn log(&mut self, _: host::Level, message: String) {
        self.logged.push(message);
    }

    fn settings(&mut self) -> String {
        "{}".to_owned()
    }

    fn secret(&mut self, _: String) -> Option<String> {
        None
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
    let now = include_str!("../../../../../wit/plugin.wit");
    let next = now.replace("taxiway:plugin@0.1.0", "taxiway:plugin@0.1.1").replace(secret, &format!("{secret}{added}"));
    assert_eq!(NEXT, next + interface, "write tests/next/plugin.wit anew when wit/plugin.wit has changed");
}

#[tokio::test]
async fn a_component_built_for_this_package_is_called_by_a_host_of_the_next_one() {
    let guest = Guest::validating(
        "(call $settings (i32.const 4096)) (call $log (i32.const 2) (i32.load (i32.const 4096)) (i32.load (i32.const 4100)))
         i32.const 1024",
    );
    let engine = Engine::new(&Config::new()).unwrap();
    let component = Component::new(&engine, guest.build()).unwrap();
    let mut linker: Linker<NextHost> = Linker::new(&engine);
    host::add_to_linker::<NextHost, HasSelf<NextHost>>(&mut linker, |state| state).unwrap();
    let hook = next::NextPre::new(linker.instantiate_pre(&component).unwrap()).unwrap();
    assert!(component.get_export_index(None, "taxiway:plugin/audit@0.1.1").is_none(), "the new interface is optional");

    let mut store = Store::new(&engine, NextHost::default());
    let job = types::Job { id: "1".into(), name: "old".into(), attempt: 1, config: "{}".into(), details: "{}".into() };
    let context = types::Context { stage: "submit".into(), dry_run: false, gpus: Vec::new(), details: "{}".into() };
    let instance = hook.instantiate_async(&mut store).await.unwrap();
    let answer = instance.taxiway_plugin_validate().call_validate(&mut store, &job, &context).await.unwrap();
    assert!(answer.unwrap().is_empty());
    assert_eq!(store.data().logged, ["{}"]);
}
