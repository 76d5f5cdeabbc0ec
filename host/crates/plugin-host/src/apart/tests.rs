//! Which thread a call runs on, and how that stands among others.

use super::*;
use futures_util::future::{join_all, pending, ready};
use std::sync::{Barrier, mpsc};
use std::thread::ThreadId;

pub fn known_to_be_short() -> Steps {
    Steps { short: AtomicBool::new(true) }
}

fn waiting() -> Arc<Waiting> {
    Arc::new(Waiting::start().unwrap())
}

/// The answer of such a call.
async fn answered<T, H>(call: impl Future<Output = (T, H)> + Send + 'static, busy: &AtomicBool, steps: &Steps) -> T
where
    T: Send + 'static,
    H: Send + 'static,
{
    let call = call.map(|(answer, held)| (Ok::<_, ()>(answer), held));
    run(call.boxed(), busy, steps, &waiting()).await.unwrap().unwrap()
}

/// The thread that a call begins on, which computes there for so long without a pause. It answers, or it fails with that.
async fn begins_on(steps: &Steps, computing: Duration, ends_well: bool) -> ThreadId {
    let call = async move {
        let until = processor_time() + computing;
        while processor_time() < until {
            std::hint::spin_loop();
        }
        let thread = thread::current().id();
        (if ends_well { Ok(thread) } else { Err(thread) }, ())
    };
    run(call.boxed(), &AtomicBool::new(false), steps, &waiting()).await.unwrap().unwrap_or_else(|thread| thread)
}

#[tokio::test(flavor = "current_thread")]
async fn calls_begin_apart_until_one_has_shown_that_they_are_short() {
    let here = thread::current().id();
    let steps = Steps::default();
    for _ in 0..3 {
        assert_ne!(begins_on(&steps, SHORT * 2, true).await, here);
    }
    assert_ne!(begins_on(&steps, Duration::ZERO, true).await, here, "nobody knew yet");
    comes_here(&steps).await;
}

/// More than one try, because the system may let a thread have more processor time than it used.
async fn comes_here(steps: &Steps) {
    for _ in 0..1000 {
        if begins_on(steps, Duration::ZERO, true).await == thread::current().id() {
            return;
        }
    }
    panic!("calls begin apart");
}

#[tokio::test(flavor = "current_thread")]
async fn a_call_that_failed_shows_nothing() {
    let steps = Steps::default();
    for _ in 0..3 {
        assert_ne!(begins_on(&steps, Duration::ZERO, false).await, thread::current().id());
    }
}

#[tokio::test(flavor = "current_thread")]
async fn many_short_steps_are_no_short_call() {
    let steps = Steps::default();
    let pausing = || async {
        let until = processor_time() + SHORT * 2;
        while processor_time() < until {
            tokio::task::yield_now().await;
        }
        (thread::current().id(), ())
    };
    for _ in 0..3 {
        assert_ne!(answered(pausing(), &AtomicBool::new(false), &steps).await, thread::current().id());
    }
}

#[tokio::test(flavor = "current_thread")]
async fn calls_begin_apart_again_after_one_that_held_its_callers_thread() {
    let here = thread::current().id();
    for ends_well in [true, false] {
        let steps = known_to_be_short();
        assert_eq!(begins_on(&steps, SHORT * 2, ends_well).await, here);
        assert_ne!(begins_on(&steps, Duration::ZERO, true).await, here);
        comes_here(&steps).await;
    }
}

/// How the thread stands that this is called on.
fn niceness() -> libc::c_int {
    // SAFETY: getpriority takes plain numbers and only reads one.
    unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }
}

#[tokio::test(flavor = "current_thread")]
async fn only_the_guests_own_code_stands_behind_others() {
    let (usual, behind) = (niceness(), niceness().max(BUSY));
    let call = async {
        let mut seen = vec![niceness()];
        for _ in 0..2 {
            // Pauses while instances are made change nothing.
            tokio::task::yield_now().await;
            seen.push(niceness());
            guest_goes_on();
            seen.push(niceness());
            tokio::task::yield_now().await;
            if needs_another_thread() {
                tokio::task::yield_now().await;
            }
        }
        seen.push(niceness());
        (seen, ())
    };
    let seen = answered(call, &AtomicBool::new(false), &Steps::default()).await;
    assert_eq!(seen, [usual, usual, behind, usual, behind, usual]);
    assert_eq!(niceness(), usual);
}

#[tokio::test(flavor = "current_thread")]
async fn a_call_on_its_callers_thread_changes_nothing_of_that() {
    let usual = niceness();
    let call = async {
        guest_goes_on();
        assert!(!needs_another_thread());
        ((niceness(), thread::current().id()), ())
    };
    let seen = answered(call, &AtomicBool::new(false), &known_to_be_short()).await;
    assert_eq!(seen, (usual, thread::current().id()));
}

/// Tells how the thread stands that it is dropped on.
struct Held(mpsc::Sender<libc::c_int>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.send(niceness()).unwrap();
    }
}

async fn told(given_back: mpsc::Receiver<libc::c_int>) -> Vec<libc::c_int> {
    tokio::task::spawn_blocking(move || given_back.iter().collect()).await.unwrap()
}

#[tokio::test(flavor = "current_thread")]
async fn what_a_call_held_that_ended_is_given_back_at_the_usual_priority() {
    let (sender, given_back) = mpsc::channel();
    for steps in [Steps::default(), known_to_be_short()] {
        let held = Held(sender.clone());
        let call = async move {
            tokio::task::yield_now().await;
            guest_goes_on();
            (niceness(), held)
        };
        assert_eq!(answered(call, &AtomicBool::new(true), &steps).await, niceness().max(BUSY));
    }
    drop(sender);
    assert_eq!(told(given_back).await, [niceness(); 2]);
}

#[tokio::test(flavor = "current_thread")]
async fn what_a_call_held_that_nobody_waits_for_is_given_back_at_the_usual_priority() {
    let (sender, given_back) = mpsc::channel();
    let (begun, mut begins) = tokio::sync::mpsc::channel(1);
    let call = async move {
        let _held = Held(sender);
        guest_goes_on();
        begun.send(niceness()).await.unwrap();
        pending::<((), ())>().await
    };
    let (busy, steps) = (AtomicBool::new(false), Steps::default());
    let mut under_way = answered(call, &busy, &steps).boxed_local();
    tokio::select! {
        () = &mut under_way => unreachable!("it never ends by itself"),
        behind = begins.recv() => assert_eq!(behind, Some(niceness().max(BUSY))),
    }
    drop(under_way);
    assert_eq!(told(given_back).await, [niceness()]);
}

#[tokio::test(flavor = "current_thread")]
async fn a_call_apart_is_in_the_span_of_its_caller() {
    // For all threads; another test of the same process may have done it.
    let _ = tracing::subscriber::set_global_default(tracing_subscriber::registry());
    let call = async { (Span::current().id(), ()) };
    let span = tracing::info_span!("caller");
    let seen = answered(call, &AtomicBool::new(false), &Steps::default()).instrument(span.clone()).await;
    assert!(seen.is_some() && seen == span.id());
}

#[tokio::test(flavor = "current_thread")]
async fn what_a_call_apart_held_is_given_back_after_its_answer() {
    struct Held(Arc<Barrier>);
    impl Drop for Held {
        fn drop(&mut self) {
            self.0.wait();
        }
    }
    let both = Arc::new(Barrier::new(2));
    let held = Held(both.clone());
    assert_eq!(answered(ready((7, held)), &AtomicBool::new(false), &Steps::default()).await, 7);
    // Giving back does not end before this.
    tokio::task::spawn_blocking(move || both.wait()).await.unwrap();
}

#[tokio::test(flavor = "current_thread")]
async fn a_call_stays_here_until_it_is_busy_and_pauses() {
    let here = thread::current().id();
    let busy = Arc::new(AtomicBool::new(false));
    let seen = busy.clone();
    let call = async move {
        let mut threads: Vec<ThreadId> = vec![thread::current().id()];
        tokio::task::yield_now().await;
        threads.push(thread::current().id());
        seen.store(true, Ordering::Relaxed);
        tokio::task::yield_now().await;
        threads.push(thread::current().id());
        (threads, ())
    };
    let threads = answered(call, &busy, &known_to_be_short()).await;
    assert_eq!(threads[..2], [here, here]);
    assert_ne!(threads[2], here);
}

#[tokio::test(flavor = "current_thread")]
async fn busy_calls_do_not_wait_for_each_other() {
    let (busy, steps) = (AtomicBool::new(true), known_to_be_short());
    // None of them ends before all have got there, and each keeps its thread while it waits.
    let all_there = Arc::new(Barrier::new(20));
    let calls = (0..20).map(|_| {
        let all_there = all_there.clone();
        let call = async move {
            tokio::task::yield_now().await;
            (all_there.wait().is_leader(), ())
        };
        answered(call, &busy, &steps)
    });
    let ended = join_all(calls).await;
    assert_eq!(ended.into_iter().filter(|leads| *leads).count(), 1);
}

#[tokio::test(flavor = "current_thread")]
async fn a_call_apart_ends_when_nobody_waits_for_it() {
    let (busy, steps) = (AtomicBool::new(true), known_to_be_short());
    let (ended, mut end) = tokio::sync::mpsc::channel::<()>(1);
    let call = async move {
        tokio::task::yield_now().await;
        ended.send(()).await.unwrap();
        pending::<(Result<(), ()>, ())>().await
    };
    let waiting = waiting();
    let mut under_way = run(call.boxed(), &busy, &steps, &waiting).boxed_local();
    tokio::select! {
        _ = &mut under_way => unreachable!("it never ends by itself"),
        begun = end.recv() => assert_eq!(begun, Some(())),
    }
    drop(under_way);
    assert_eq!(end.recv().await, None, "what it held is dropped");
}

#[tokio::test(flavor = "current_thread")]
async fn a_panic_apart_is_the_end_of_that_call_alone() {
    let (busy, steps) = (AtomicBool::new(true), known_to_be_short());
    let call = async {
        tokio::task::yield_now().await;
        panic!("a bug of the host's")
    };
    let lost = run::<(), (), ()>(call.boxed(), &busy, &steps, &waiting()).await;
    assert!(matches!(lost, Err(Lost::Panicked)));
}

#[test]
fn what_blocks_a_busy_guest_is_done_on_no_thread_of_the_service() {
    let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).enable_all().build().unwrap();
    let usual = niceness();
    let call = async {
        guest_goes_on();
        // As a guest reads a file.
        let blocked = tokio::task::spawn_blocking(niceness).await.unwrap();
        (blocked, ())
    };
    let (busy, steps) = (AtomicBool::new(false), Steps::default());
    runtime.block_on(async {
        assert_eq!(answered(call, &busy, &steps).await, usual.max(BUSY), "it inherits what made it");
        // There is no other thread to do this.
        assert_eq!(tokio::task::spawn_blocking(niceness).await.unwrap(), usual);
    });
}
