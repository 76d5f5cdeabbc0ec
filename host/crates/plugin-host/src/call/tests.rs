//! What of a call cannot be seen from outside.

use super::*;
use crate::egress::Policy;
use crate::limits::Limits;
use crate::memory::Memories;
use crate::places::{Places, Shared};
use crate::plugin::{Hooks, Inner, Terms, Timeouts};
use crate::runtime::Runtime;
use crate::state::Room;
use crate::ticker::Ticker;
use crate::tls::Tls;
use crate::view::{Mode, OnError};
use std::path::PathBuf;
use std::sync::{Mutex, mpsc};
use wasmtime::component::{Component, InstancePre, Linker};
use wasmtime::{Config, Engine, LinearMemory, MemoryCreator, MemoryType};

const PATIENCE: Duration = Duration::from_secs(60);

fn plugin(runtime: Runtime, read: Vec<PathBuf>) -> Plugin {
    let runtime = Arc::new(runtime);
    let terms = Terms {
        name: "p".into(),
        version: "1".into(),
        sha256: String::new(),
        hooks: vec![Hook::Validate],
        order: 0,
        stages: Vec::new(),
        profiles: None,
        mode: Mode::Enforce,
        on_error: OnError::Reject,
    };
    let policy = Policy {
        plugin: "p".into(),
        hosts: Vec::new(),
        allow_private: Vec::new(),
        limits: runtime.limits.clone(),
        secrets: Arc::default(),
        tls: runtime.tls.clone(),
    };
    let loaded = Loaded {
        hooks: Hooks::default(),
        timeout: Timeouts::new(&runtime.limits, None),
        room: Room { memory: 16 << 20, instances: 20 },
        settings: "{}".into(),
        secrets: Arc::default(),
        policy: Arc::new(policy),
        read,
        env: Vec::new(),
        places: Places::one(),
        steps: Arc::default(),
        runtime,
    };
    Plugin(Arc::new(Inner { terms, stats: Arc::default(), body: Body::Loaded(Box::new(loaded)) }))
}

#[tokio::test]
async fn a_panic_of_the_hosts_own_code_fails_one_call_and_no_other() {
    let plugin = plugin(Runtime::start(Limits::default(), Tls::new(None).unwrap()).unwrap(), Vec::new());
    for _ in 0..3 {
        let mut call = Call::begin(&plugin, Hook::Validate, "job", false);
        let result: Result<(), _> = call.run(PATIENCE, |_| async { panic!("a bug of the host's") }.boxed()).await;
        let error = call.end(result).result.unwrap_err();
        assert_eq!((error.kind, error.plugin.as_str()), (FailureKind::HostPanic, "p"));
        // The one place of the plugin is free again.
        let mut call = Call::begin(&plugin, Hook::Validate, "job", false);
        let result = call.run(PATIENCE, |_| async { Ok(7) }.boxed()).await;
        assert_eq!(call.end(result).result, Ok(7));
    }
    assert_eq!((plugin.0.stats.calls(), plugin.0.stats.failures()), (6, 3));
}

/// How the thread stands that this is called on.
fn niceness() -> libc::c_int {
    // SAFETY: getpriority takes plain numbers and only reads one.
    unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }
}

/// What was done on a thread of this niceness.
type Seen = (&'static str, libc::c_int);

/// Makes memories as the service does, and tells of each.
struct Told(Mutex<mpsc::Sender<Seen>>);

// SAFETY: it is what `Memories` is.
unsafe impl MemoryCreator for Told {
    fn new_memory(
        &self,
        of: MemoryType,
        minimum: usize,
        maximum: Option<usize>,
        reserved: Option<usize>,
        guard: usize,
    ) -> Result<Box<dyn LinearMemory>, String> {
        self.0.lock().unwrap().send(("memory", niceness())).unwrap();
        Memories.new_memory(of, minimum, maximum, reserved, guard)
    }
}

/// A component whose modules have a memory of so many pages each and a start function, which computes until it stands behind others
/// if it is to compute `long`.
fn starting(pages: u32, long: bool) -> Vec<u8> {
    let again = if long { "(br_if $again (i32.eqz (call $tell)))" } else { "(drop (call $tell))" };
    let text = format!(
        r#"(component
  (import "tell" (func $tell (result bool)))
  (core func $told (canon lower (func $tell)))
  (core instance $host (export "tell" (func $told)))
  (core module $starts
    (import "host" "tell" (func $tell (result i32)))
    (memory {pages})
    (func $start (loop $again {again}))
    (start $start)
    (func (export "answer") (drop (call $tell))))
  (core instance (instantiate $starts (with "host" (instance $host))))
  (core instance (instantiate $starts (with "host" (instance $host))))
  (core instance $last (instantiate $starts (with "host" (instance $host))))
  (func (export "answer") (canon lift (core func $last "answer"))))"#
    );
    wat::parse_str(text).unwrap()
}

async fn answer(component: InstancePre<State>, store: &mut Store<State>) -> wasmtime::Result<()> {
    let instance = component.instantiate_async(&mut *store).await?;
    store.data_mut().turn.instances_are_made();
    instance.get_typed_func::<(), ()>(&mut *store, "answer")?.call_async(&mut *store, ()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_are_made_at_the_usual_priority_and_the_guest_runs_behind_others() {
    let readable = tempfile::tempdir().unwrap();
    // Beside one without them, with what makes a call pause before and between its instances: a directory that is opened, more memory
    // than a guest has without a thread to itself, and start functions that compute for longer than a turn.
    for (pages, long, read) in
        [(1, false, vec![]), (1, false, vec![readable.path().to_owned()]), (81, false, vec![]), (1, true, vec![])]
    {
        let (usual, behind) = (niceness(), niceness().max(10));
        let (seen, all) = mpsc::channel();
        let mut config = Config::new();
        config
            .epoch_interruption(true)
            .with_host_memory(Arc::new(Told(Mutex::new(seen.clone()))))
            .memory_init_cow(false);
        let engine = Engine::new(&config).unwrap();
        let mut linker = Linker::new(&engine);
        let seen = Mutex::new(seen);
        let told = move |_: wasmtime::StoreContextMut<'_, State>, (): ()| {
            seen.lock().unwrap().send(("guest", niceness())).unwrap();
            Ok((niceness() == behind,))
        };
        linker.root().func_wrap("tell", told).unwrap();
        let component = Component::new(&engine, starting(pages, long)).unwrap();
        let component = linker.instantiate_pre(&component).unwrap();
        let limits = Limits::default();
        let runtime = Runtime {
            ticker: Ticker::start(engine.clone()).unwrap(),
            places: Shared::new(&limits),
            limits: Arc::new(limits),
            tls: Arc::new(Tls::new(None).unwrap()),
            engine,
            linker,
        };
        let plugin = plugin(runtime, read.clone());
        let mut call = Call::begin(&plugin, Hook::Validate, "job", false);
        let result = call.run(PATIENCE, |store| async move { answer(component, store).await }.boxed()).await;
        call.end(result).result.unwrap();
        let seen: Vec<_> = all.try_iter().collect();
        let of = |what| move |seen: &&Seen| seen.0 == what;
        assert_eq!(seen.iter().filter(of("memory")).collect::<Vec<_>>(), [&("memory", usual); 3], "{seen:?}");
        assert_eq!(seen.last(), Some(&("guest", behind)), "{pages} pages, {long}: {seen:?}");
        if pages > 1 {
            assert!(seen.iter().filter(of("guest")).all(|seen| seen.1 == behind), "{seen:?}");
        }
    }
}
