//! kill -9 of the service, of a job's shim and of both, in every state: each time it comes to what `docs/launch-protocol.md`
//! says. `make kills` does it a hundred times for each victim in each state.

use std::time::{Duration, Instant};

use serde_json::json;
use taxiway_tests::processes::{Process, armed_shim_of, of_job, shim_of, zombies_of};
use taxiway_tests::{Bell, Events, Gate, Place, Random, Server, number, sh};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Service,
    Shim,
    Both,
}

/// Where the job is when it happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    Armed,
    /// Pending, and its shim has not come to read that it shall start: it is stopped.
    Told,
    /// Pending, and its shim may be anywhere on the way to the exec, or past it.
    Pending,
    Running,
    Cancelling,
}

const STATES: [When; 5] = [When::Armed, When::Told, When::Pending, When::Running, When::Cancelling];

/// How often each victim is killed in each state; `TAXIWAY_TEST_ROUNDS` asks for another number.
const ROUNDS: u64 = 7;

/// A shim that does not answer to `go` for so long is continued by its service.
const CONTINUED_AFTER: Duration = Duration::from_secs(2);

/// How a job ended, as far as it matters here.
#[derive(Debug, PartialEq, Eq)]
struct End {
    state: String,
    class: Option<String>,
    code: Option<i64>,
    signal: Option<i64>,
    /// How often its command was started.
    starts: usize,
}

impl End {
    fn new(state: &str, class: Option<&str>, code: Option<i64>, signal: Option<i64>, starts: usize) -> Self {
        Self { state: state.to_owned(), class: class.map(str::to_owned), code, signal, starts }
    }

    /// It ended by itself, with its true status.
    fn exact() -> Self {
        Self::new("failed", Some("exit"), Some(7), None, 1)
    }

    fn lost(starts: usize) -> Self {
        Self::new("failed", Some("host_lost"), None, None, starts)
    }

    /// `late`: the shim was stopped for so long that its service may have continued it.
    fn is_expected(&self, victim: Victim, when: When, late: bool) -> bool {
        match (when, victim) {
            (When::Told, Victim::Shim | Victim::Both) if late => {
                [Self::exact(), Self::lost(0), Self::lost(1)].contains(self)
            }
            // Nothing had been started: the job keeps its place and runs once, when its turn comes.
            (When::Armed | When::Told, _) | (When::Pending | When::Running, Victim::Service) => *self == Self::exact(),
            // On its way: either provably nothing ran, and it runs once after all, or it is lost and never runs again.
            (When::Pending, _) => [Self::exact(), Self::lost(0), Self::lost(1)].contains(self),
            (When::Running, _) => *self == Self::lost(1),
            // The stop was stored, so it is carried out, and a status that there is, is recorded.
            (When::Cancelling, Victim::Service) => *self == Self::new("cancelled", None, None, Some(9), 1),
            (When::Cancelling, _) => *self == Self::new("cancelled", None, None, None, 1),
        }
    }
}

async fn kill(server: Server, shim: Process, victim: Victim, random: &mut Random) -> Result<Server, Place> {
    match victim {
        Victim::Service => Err(server.kill().await),
        Victim::Shim => {
            shim.kill();
            Ok(server)
        }
        Victim::Both if random.below(2) == 0 => {
            shim.kill();
            Err(server.kill().await)
        }
        Victim::Both => {
            let place = server.kill().await;
            shim.kill();
            Err(place)
        }
    }
}

async fn round(server: Server, events: &mut Events, victim: Victim, when: When, number: usize) -> Server {
    let mut random = Random::of_seed(number as u64 + 1);
    let directory = server.place().path().to_owned();
    let jobs_dir = server.place().jobs_dir();
    let mut gate = Gate::new(&directory, &format!("gate-{number}"));
    let mut before = Gate::new(&directory, &format!("before-{number}"));
    let mut bell = Bell::new(&directory, &format!("bell-{number}"));
    let ran = directory.join(format!("ran-{number}"));
    let blocker = if matches!(when, When::Armed | When::Told) {
        let blocker = server.submit(sh(&before.wait())).await;
        events.job(blocker.id(), "running").await;
        Some(blocker)
    } else {
        None
    };
    let deaf = if when == When::Cancelling { "trap '' TERM; " } else { "" };
    let wait = if when == When::Cancelling { format!("while :; do {}; done", gate.wait()) } else { gate.wait() };
    let script = format!("{deaf}echo start >> '{}'; {}; {wait}; exit 7", ran.display(), bell.ring("up"));
    let mut submission = sh(&script);
    submission["grace"] = json!("200ms");
    let job = server.submit(submission).await;
    match when {
        When::Armed | When::Told => {}
        When::Pending => drop(events.job(job.id(), "pending").await),
        When::Running | When::Cancelling => {
            events.job(job.id(), "running").await;
            bell.heard().await;
        }
    }
    let shim = match when {
        When::Told => armed_shim_of(&jobs_dir, job.id()).await,
        _ => shim_of(&jobs_dir, job.id()).await,
    };
    let told_after = Instant::now();
    if when == When::Told {
        shim.signal(libc::SIGSTOP);
        before.open();
        events.job(job.id(), "pending").await;
    }
    if when == When::Cancelling {
        assert_eq!(server.operate(job.id(), "cancel").await.expect(200).job().state(), "cancelling");
    }
    let killed = kill(server, shim, victim, &mut random).await;
    let late = told_after.elapsed() >= CONTINUED_AFTER;
    let server = match killed {
        Ok(server) => server,
        Err(place) => {
            if random.below(2) == 0 {
                shim.signal(libc::SIGCONT);
            }
            let server = place.start().await;
            events.resume(&server).await;
            server
        }
    };
    shim.signal(libc::SIGCONT);
    if when != When::Told {
        before.open();
    }
    if when != When::Cancelling {
        gate.open();
    }
    let state = events.end_of(job.id()).await;
    let left = of_job(job.id());
    assert!(left.is_empty(), "round {number}: {victim:?} killed while {when:?}: left behind {left:?}");
    if let Some(blocker) = blocker {
        assert_eq!(events.end_of(blocker.id()).await, "completed", "round {number}");
    }
    let job = server.job(job.id()).await;
    let starts = std::fs::read_to_string(&ran).unwrap_or_default().lines().count();
    let end = End::new(&state, job.failure_class(), job.exit_code(), job.exit_signal(), starts);
    assert!(end.is_expected(victim, when, late), "round {number}: {victim:?} killed while {when:?}: {end:?}");
    server
}

async fn rounds(victim: Victim) {
    let mut server = Place::new().start().await;
    let mut events = server.events().await;
    let rounds = number("TAXIWAY_TEST_ROUNDS", ROUNDS) as usize;
    for number in 0..rounds * STATES.len() {
        server = round(server, &mut events, victim, STATES[number % STATES.len()], number).await;
    }
    let last = server.submit(sh("exit 0")).await;
    assert_eq!(events.end_of(last.id()).await, "completed", "the line goes on");
}

#[tokio::test]
async fn the_service_killed_in_any_state_finds_the_true_end_of_its_job() {
    rounds(Victim::Service).await;
}

#[tokio::test]
async fn a_shim_killed_in_any_state_takes_its_job_with_it_and_nothing_runs_twice() {
    rounds(Victim::Shim).await;
}

#[tokio::test]
async fn service_and_shim_killed_together_in_any_state_leave_nothing_and_nothing_runs_twice() {
    rounds(Victim::Both).await;
}

#[tokio::test]
async fn a_shim_and_the_spawner_above_it_killed_together_leave_nothing_behind() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    let directory = server.place().path().to_owned();
    let mut bell = Bell::new(&directory, "bell");
    // What has neither the launch's environment nor its session nor any ancestor of the job's.
    let hidden = directory.join("hidden.sh");
    std::fs::write(&hidden, format!("{}; sleep 1000; exit", bell.ring("$$"))).expect("written");
    let job = server.submit(sh(&format!("(setsid env -i sh '{}' &); sleep 1000", hidden.display()))).await;
    events.job(job.id(), "running").await;
    let hidden = Process::find(bell.pid().await).expect("it runs");
    let shim = shim_of(&server.place().jobs_dir(), job.id()).await;
    shim.parent().expect("a spawner").signal(libc::SIGKILL);
    shim.signal(libc::SIGKILL);
    assert_eq!(events.end_of(job.id()).await, "failed");
    assert_eq!(server.job(job.id()).await.failure_class(), Some("host_lost"));
    assert!(!hidden.is_alive(), "{hidden:?} lives on");
    let zombies = zombies_of(server.pid());
    assert!(zombies.is_empty(), "not waited for: {zombies:?}");
    let last = server.submit(sh("exit 0")).await;
    assert_eq!(events.end_of(last.id()).await, "completed", "the line goes on");
}
