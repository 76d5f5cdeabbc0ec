//! What of a call cannot be seen from outside.

use super::*;
use crate::apart::tests::known_to_be_short;
use crate::apart::{Steps, Waiting};
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
use futures_util::future::{join_all, pending};
use futures_util::poll;
use std::sync::atomic::AtomicUsize;
use std::sync::{Mutex, mpsc};
use std::thread;
use tokio::runtime::Builder;
use tokio::sync::{Barrier, Notify};
use tokio::task::spawn_blocking;
use wasmtime::component::{Component, InstancePre, Linker};
use wasmtime::{Config, Engine, LinearMemory, MemoryCreator, MemoryType};

const PATIENCE: Duration = Duration::from_secs(60);

/// A plugin that nothing is known of and that may read nothing.
fn fresh_plugin(runtime: Runtime) -> Plugin {
    plugin(runtime, Steps::default(), Vec::new())
}

fn plugin(runtime: Runtime, steps: Steps, read: Vec<PathBuf>) -> Plugin {
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
        places: Places::new(&runtime.limits, &runtime.places),
        steps: Arc::new(steps),
        runtime,
    };
    Plugin(Arc::new(Inner { terms, stats: Arc::default(), body: Body::Loaded(Box::new(loaded)) }))
}

fn runtime(limits: Limits) -> Runtime {
    Runtime::start(limits, Tls::new(None).unwrap()).unwrap()
}

/// As the service has it, with memories from elsewhere.
fn runtime_with(memories: impl MemoryCreator + 'static) -> Runtime {
    let mut config = Config::new();
    config.epoch_interruption(true).with_host_memory(Arc::new(memories)).memory_init_cow(false);
    let engine = Engine::new(&config).unwrap();
    let limits = Limits::default();
    Runtime {
        ticker: Ticker::start(engine.clone()).unwrap(),
        places: Shared::new(&limits),
        waiting: Arc::new(Waiting::start().unwrap()),
        limits: Arc::new(limits),
        tls: Arc::new(Tls::new(None).unwrap()),
        linker: Linker::new(&engine),
        engine,
    }
}

/// Calls a plugin's guest, or whatever stands in its place.
async fn called<T, F>(plugin: &Plugin, timeout: Duration, enter: F) -> Result<T, CallError>
where
    T: Send + 'static,
    F: for<'s> FnOnce(&'s mut Store<State>) -> BoxFuture<'s, wasmtime::Result<T>> + Send + 'static,
{
    let mut call = Call::begin(plugin, Hook::Validate, "job", false);
    let result = call.run(timeout, enter).await;
    call.end(result).result
}

#[tokio::test]
async fn a_panic_of_the_hosts_own_code_fails_one_call_and_no_other() {
    let plugin = fresh_plugin(runtime(Limits { parallel: 1, parallel_total: 1, ..Limits::default() }));
    for _ in 0..3 {
        let error = called::<(), _>(&plugin, PATIENCE, |_| async { panic!("a bug of the host's") }.boxed()).await;
        let error = error.unwrap_err();
        assert_eq!((error.kind, error.plugin.as_str()), (FailureKind::HostPanic, "p"));
        // The places of the plugin are free again.
        for _ in 0..2 {
            assert_eq!(called(&plugin, PATIENCE, |_| async { Ok(7) }.boxed()).await, Ok(7));
        }
    }
    assert_eq!((plugin.0.stats.calls(), plugin.0.stats.failures()), (9, 3));
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
    // than a guest has without a thread to itself, and start functions that compute for longer than a turn. The last two also where
    // calls begin on the caller's thread.
    for (steps, pages, long, read) in [
        (Steps::default(), 1, false, vec![]),
        (Steps::default(), 1, false, vec![readable.path().to_owned()]),
        (Steps::default(), 81, false, vec![]),
        (Steps::default(), 1, true, vec![]),
        (known_to_be_short(), 81, false, vec![]),
        (known_to_be_short(), 1, true, vec![]),
    ] {
        let (usual, behind) = (niceness(), niceness().max(10));
        let (seen, all) = mpsc::channel();
        let mut runtime = runtime_with(Told(Mutex::new(seen.clone())));
        let seen = Mutex::new(seen);
        let told = move |_: wasmtime::StoreContextMut<'_, State>, (): ()| {
            seen.lock().unwrap().send(("guest", niceness())).unwrap();
            Ok((niceness() == behind,))
        };
        runtime.linker.root().func_wrap("tell", told).unwrap();
        let component = Component::new(&runtime.engine, starting(pages, long)).unwrap();
        let component = runtime.linker.instantiate_pre(&component).unwrap();
        let plugin = plugin(runtime, steps, read);
        called(&plugin, PATIENCE, |store| async move { answer(component, store).await }.boxed()).await.unwrap();
        let seen: Vec<_> = all.try_iter().collect();
        let of = |what| move |seen: &&Seen| seen.0 == what;
        assert_eq!(seen.iter().filter(of("memory")).collect::<Vec<_>>(), [&("memory", usual); 3], "{seen:?}");
        assert_eq!(seen.last(), Some(&("guest", behind)), "{pages} pages, {long}: {seen:?}");
        if pages > 1 {
            assert!(seen.iter().filter(of("guest")).all(|seen| seen.1 == behind), "{seen:?}");
        }
    }
}

/// Makes memories as the service does, and counts how many at a time at most.
struct Counted {
    now: AtomicUsize,
    most: Arc<AtomicUsize>,
}

// SAFETY: it is what `Memories` is.
unsafe impl MemoryCreator for Counted {
    fn new_memory(
        &self,
        of: MemoryType,
        minimum: usize,
        maximum: Option<usize>,
        reserved: Option<usize>,
        guard: usize,
    ) -> Result<Box<dyn LinearMemory>, String> {
        self.most.fetch_max(self.now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        // Long enough for another one to come in between, if it may.
        thread::sleep(Duration::from_millis(2));
        self.now.fetch_sub(1, Ordering::SeqCst);
        Memories.new_memory(of, minimum, maximum, reserved, guard)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugins_calls_make_instances_one_after_the_other_and_their_guests_run_and_sleep_beside_each_other() {
    const CALLS: usize = 5;
    // Its modules' start functions and its answer each wait in the host until all calls are there.
    let text = r#"(component
      (import "meet" (func $meet))
      (core func $met (canon lower (func $meet)))
      (core instance $host (export "meet" (func $met)))
      (core module $meets
        (import "host" "meet" (func $meet))
        (memory 1)
        (start $meet)
        (func (export "answer") (call $meet)))
      (core instance (instantiate $meets (with "host" (instance $host))))
      (core instance (instantiate $meets (with "host" (instance $host))))
      (core instance $last (instantiate $meets (with "host" (instance $host))))
      (func (export "answer") (canon lift (core func $last "answer"))))"#;
    let most = Arc::new(AtomicUsize::new(0));
    let mut runtime = runtime_with(Counted { now: AtomicUsize::new(0), most: most.clone() });
    let all_there = Arc::new(Barrier::new(CALLS));
    let meet = move || {
        let all_there = all_there.clone();
        async move {
            all_there.wait().await;
            Ok(())
        }
    };
    runtime.linker.root().func_wrap_async("meet", move |_, (): ()| Box::new(meet())).unwrap();
    let component = Component::new(&runtime.engine, wat::parse_str(text).unwrap()).unwrap();
    let component = runtime.linker.instantiate_pre(&component).unwrap();
    let plugin = fresh_plugin(runtime);
    let calls = (0..CALLS).map(|_| {
        let component = component.clone();
        called(&plugin, PATIENCE, |store| async move { answer(component, store).await }.boxed())
    });
    for ended in join_all(calls).await {
        ended.unwrap();
    }
    assert_eq!(most.load(Ordering::SeqCst), 1);
}

/// A call that has the turn to make instances, and keeps it until it is told to end.
async fn holding_the_turn(plugin: &Plugin, begun: Arc<Notify>, end: Arc<Notify>) -> Result<(), CallError> {
    let until_told = async move {
        begun.notify_one();
        end.notified().await;
        Ok(())
    };
    called(plugin, PATIENCE, |_| until_told.boxed()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_call_waited_for_the_instances_of_others_is_not_its_time() {
    const TIMEOUT: Duration = Duration::from_millis(50);
    let plugin = fresh_plugin(runtime(Limits { wait: PATIENCE, ..Limits::default() }));
    let (begun, end) = (Arc::<Notify>::default(), Arc::<Notify>::default());
    let first = tokio::spawn({
        let (plugin, begun, end) = (plugin.clone(), begun.clone(), end.clone());
        async move { holding_the_turn(&plugin, begun, end).await }
    });
    begun.notified().await;
    let mut second = Box::pin(called(&plugin, TIMEOUT, |_| async { Ok(()) }.boxed()));
    // Had its time run meanwhile, it would have ended.
    tokio::time::timeout(TIMEOUT * 4, &mut second).await.expect_err("it waits");
    end.notify_one();
    first.await.unwrap().unwrap();
    // How long it takes itself is up to the machine.
    let _ = second.await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_waited_in_vain_for_the_instances_of_others_was_not_called() {
    let plugin = fresh_plugin(runtime(Limits { wait: Duration::from_millis(20), ..Limits::default() }));
    let (begun, end) = (Arc::<Notify>::default(), Arc::<Notify>::default());
    let mut first = Box::pin(holding_the_turn(&plugin, begun.clone(), end));
    tokio::select! {
        ended = &mut first => unreachable!("it ends when it is told to: {ended:?}"),
        () = begun.notified() => {}
    }
    let error = called(&plugin, PATIENCE, |_| async { Ok(()) }.boxed()).await.unwrap_err();
    assert_eq!((error.kind, error.limit.as_deref()), (FailureKind::Busy, Some("wait of 20 ms")));
    assert_eq!((plugin.0.stats.calls(), plugin.0.stats.failures()), (0, 0));
}

#[test]
fn what_the_directories_took_to_open_is_not_taken_from_the_wait_for_the_instances_of_others() {
    const WAIT: Duration = Duration::from_millis(20);
    let readable = tempfile::tempdir().unwrap();
    // Its one thread for what blocks does one thing after the other.
    let one_thread = Builder::new_current_thread().enable_all().max_blocking_threads(1).build().unwrap();
    one_thread.block_on(async {
        let limits = Limits { wait: WAIT, ..Limits::default() };
        let plugin = plugin(runtime(limits), Steps::default(), vec![readable.path().to_owned()]);
        let turn = plugin.loaded().unwrap().places.turn_to_make_instances().await;
        let (opens, told) = mpsc::channel::<()>();
        let slow = spawn_blocking(move || told.recv());
        let mut call = Box::pin(called(&plugin, PATIENCE, |_| async { Ok(7) }.boxed()));
        assert!(poll!(&mut call).is_pending(), "it opens its directory");
        // Until the whole wait would be over, had it begun.
        tokio::time::sleep(WAIT * 2).await;
        opens.send(()).unwrap();
        slow.await.unwrap().unwrap();
        // Behind the directory.
        spawn_blocking(|| ()).await.unwrap();
        assert!(poll!(&mut call).is_pending(), "it waits for its turn");
        drop(turn);
        assert_eq!(call.await, Ok(7));
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_turn_to_make_instances_is_given_back_however_a_call_ends() {
    async fn nothing_known(after: impl AsyncFnOnce(&Plugin)) {
        let plugin = fresh_plugin(runtime(Limits { wait: PATIENCE, ..Limits::default() }));
        after(&plugin).await;
        assert_eq!(called(&plugin, PATIENCE, |_| async { Ok(7) }.boxed()).await, Ok(7));
    }
    nothing_known(async |plugin| {
        let error = called::<(), _>(plugin, PATIENCE, |_| async { Err(Trap::OutOfFuel.into()) }.boxed()).await;
        assert_eq!(error.unwrap_err().kind, FailureKind::Trap);
    })
    .await;
    nothing_known(async |plugin| {
        let error = called::<(), _>(plugin, PATIENCE, |_| async { panic!("a bug of the host's") }.boxed()).await;
        assert_eq!(error.unwrap_err().kind, FailureKind::HostPanic);
    })
    .await;
    nothing_known(async |plugin| {
        let error = called::<(), _>(plugin, Duration::from_millis(20), |_| pending().boxed()).await;
        assert_eq!(error.unwrap_err().kind, FailureKind::Timeout);
    })
    .await;
    nothing_known(async |plugin| {
        let (begun, end) = (Arc::<Notify>::default(), Arc::<Notify>::default());
        let mut call = Box::pin(holding_the_turn(plugin, begun.clone(), end));
        tokio::select! {
            ended = &mut call => unreachable!("it ends when it is told to: {ended:?}"),
            () = begun.notified() => {}
        }
    })
    .await;
}
