//! The protocol of DESIGN §5 as a state machine, explored exhaustively: a kill of the host, of a shim, and a power loss before
//! every step, with stops, retries, and a job that is armed while another runs.
//!
//! The model knows what the real thing knows: what is durable, what is only in the page cache, what is in flight on a socket and
//! what one process remembers. Its properties are the four of DESIGN §5, and one more:
//!
//! 1. no command starts twice for one launch, and no launch that ran is taken for one that did not (but for the one case that
//!    DESIGN names: the mark was lost in a power loss and `pending` had not been committed);
//! 2. no job is lost: every state leads to an end;
//! 3. a status that the shim wrote and that was not lost with the power is what the launch ends with;
//! 4. no process of an ended attempt lives;
//! 5. two jobs never run in one slot.

use std::collections::HashMap;

use crate::launch::StoredPhase;
use crate::rules::{Known, nothing_ran};

/// The most launches that a scope may ask for.
const LAUNCHES: usize = 3;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Shim {
    None,
    Start,
    Ready,
    Going,
    Forked,
    Run,
    Reaped,
    Written,
    Told,
    Synced,
    Gone,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Connection {
    None,
    Open,
    Closed,
    Confirmed,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Child {
    None,
    BeforeExec,
    Alive,
    Dead,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum File {
    Absent,
    Cached,
    Durable,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Lock {
    Free,
    Shim,
    Host,
}

/// What the store holds of a launch once its story is over.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Conclusion {
    Open,
    NotStarted,
    Status,
    Lost,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct Launch {
    job: usize,
    shim: Shim,
    go: bool,
    connection: Connection,
    /// Its socket is there: a host that does not know it yet can ask it.
    listens: bool,
    child: Child,
    started: File,
    exit: File,
    lock: Lock,
    runs: u8,
    told: bool,
    wrote: bool,
    lost_mark: bool,
    /// Whether `pending` was ever committed for it.
    pending: bool,
    conclusion: Conclusion,
}

const NEW: Launch = Launch {
    job: 0,
    shim: Shim::None,
    go: false,
    connection: Connection::None,
    listens: false,
    child: Child::None,
    started: File::Absent,
    exit: File::Absent,
    lock: Lock::Free,
    runs: 0,
    told: false,
    wrote: false,
    lost_mark: false,
    pending: false,
    conclusion: Conclusion::Open,
};

/// A job in the store.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Stored {
    Queued,
    Armed,
    Pending,
    Running,
    Ended,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Stop {
    Cancel,
    Requeue,
}

/// What the host remembers of a job.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Memory {
    Idle,
    Made,
    Committed,
    Waiting,
    Disarming,
    Went,
    Adopted,
    EndSeen,
    Confirming,
    Boot,
    Recovering,
    Locked,
    Settling,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct Job {
    stored: Stored,
    stop: Option<Stop>,
    launch: Option<usize>,
    boot: u8,
    memory: Memory,
    retries: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct World<const JOBS: usize> {
    jobs: [Job; JOBS],
    launches: [Launch; LAUNCHES],
    used: usize,
    boot: u8,
    host: bool,
    crashes: u8,
}

/// What is explored.
#[derive(Clone, Copy)]
struct Scope {
    /// How many launches all jobs have together. A job that would need another has left the model.
    launches: usize,
    crashes: u8,
    stops: bool,
    retries: u8,
}

type Steps<const JOBS: usize> = Vec<(&'static str, World<JOBS>)>;

impl<const JOBS: usize> World<JOBS> {
    fn new(scope: Scope) -> Self {
        let job = Job {
            stored: Stored::Queued,
            stop: None,
            launch: None,
            boot: 0,
            memory: Memory::Idle,
            retries: scope.retries,
        };
        Self { jobs: [job; JOBS], launches: [NEW; LAUNCHES], used: 0, boot: 0, host: true, crashes: 0 }
    }

    fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    fn steps(&self, scope: Scope) -> Steps<JOBS> {
        let mut steps = Vec::new();
        if self.host {
            for job in 0..JOBS {
                self.host_steps(job, scope, &mut steps);
            }
        } else {
            steps.push((
                "host starts",
                self.with(|w| {
                    w.host = true;
                    w.jobs.iter_mut().for_each(|job| job.memory = Memory::Boot);
                }),
            ));
        }
        for launch in 0..self.used {
            self.shim_steps(launch, &mut steps);
        }
        if self.crashes < scope.crashes {
            self.crash_steps(&mut steps);
        }
        steps
    }

    /// Whether nothing of another job may run, as far as the host knows.
    fn slot_is_free(&self, job: usize) -> bool {
        self.jobs.iter().enumerate().all(|(other, state)| {
            other == job
                || matches!(
                    state.memory,
                    Memory::Idle
                        | Memory::Made
                        | Memory::Committed
                        | Memory::Waiting
                        | Memory::Disarming
                        | Memory::EndSeen
                        | Memory::Confirming
                )
        })
    }

    fn commit_pending(&mut self, job: usize) {
        self.jobs[job].stored = Stored::Pending;
        if let Some(at) = self.jobs[job].launch {
            self.launches[at].pending = true;
        }
    }

    /// The attempt is over: the transaction that says so.
    fn conclude(&mut self, job: usize, launch: usize, conclusion: Conclusion) {
        self.launches[launch].conclusion = conclusion;
        let state = &mut self.jobs[job];
        let stop = state.stop.take();
        state.stored = match (stop, conclusion) {
            (Some(Stop::Cancel), _) => Stored::Ended,
            (Some(Stop::Requeue), _) | (None, Conclusion::NotStarted) => Stored::Queued,
            (None, _) if state.retries > 0 => {
                state.retries -= 1;
                Stored::Queued
            }
            (None, _) => Stored::Ended,
        };
        state.launch = None;
        state.memory = Memory::Idle;
    }

    fn host_steps(&self, job: usize, scope: Scope, steps: &mut Steps<JOBS>) {
        let state = self.jobs[job];
        let mut add = |name, change: &dyn Fn(&mut Self)| steps.push((name, self.with(|w| change(w))));
        if scope.stops && state.stop.is_none() && state.stored != Stored::Ended && state.memory != Memory::Boot {
            // A stop is stored before anything is done about it.
            add("cancel is stored", &|w| w.jobs[job].stop = Some(Stop::Cancel));
            if matches!(state.memory, Memory::Went | Memory::Adopted) {
                add("requeue is stored", &|w| w.jobs[job].stop = Some(Stop::Requeue));
            }
        }
        match state.memory {
            Memory::Idle if state.stored == Stored::Queued => {
                if state.stop.is_some() {
                    add("cancelled while queued", &|w| {
                        w.jobs[job].stop = None;
                        w.jobs[job].stored = Stored::Ended;
                    });
                } else if self.used < scope.launches {
                    add("makes the directory", &|w| {
                        w.launches[w.used] = Launch { job, ..NEW };
                        w.jobs[job].launch = Some(w.used);
                        w.jobs[job].memory = Memory::Made;
                        w.used += 1;
                    });
                }
            }
            Memory::Boot => add("reads the store", &|w| {
                let state = &mut w.jobs[job];
                let settled = matches!(state.stored, Stored::Queued | Stored::Ended);
                state.memory = if settled { Memory::Idle } else { Memory::Recovering };
                if settled {
                    state.launch = None;
                }
            }),
            _ => {}
        }
        let Some(at) = state.launch else { return };
        let launch = self.launches[at];
        match state.memory {
            Memory::Made => add("commits armed", &|w| {
                w.jobs[job] = Job { stored: Stored::Armed, boot: w.boot, memory: Memory::Committed, ..w.jobs[job] };
            }),
            Memory::Committed => add("starts the shim", &|w| {
                w.launches[at].shim = Shim::Start;
                w.launches[at].connection = Connection::Open;
                w.jobs[job].memory = Memory::Waiting;
            }),
            Memory::Waiting if launch.shim == Shim::Ready => {
                if state.stop.is_none() && self.slot_is_free(job) {
                    add("go", &|w| {
                        w.launches[at].go = true;
                        w.jobs[job].memory = Memory::Went;
                    });
                }
                add("disarms", &|w| {
                    w.launches[at].connection = Connection::Closed;
                    w.jobs[job].memory = Memory::Disarming;
                });
            }
            Memory::Waiting | Memory::Disarming if launch.shim == Shim::Gone => {
                add("commits not started", &|w| w.conclude(job, at, Conclusion::NotStarted));
            }
            Memory::Went | Memory::Adopted => self.follow_steps(job, at, steps),
            Memory::EndSeen => add("commits the end, and whatever else is told by then", &|w| {
                // One transaction: the end of this job and `pending` of the one that was told to go after it.
                for other in 0..JOBS {
                    if w.jobs[other].memory == Memory::Went && w.jobs[other].stored == Stored::Armed {
                        w.commit_pending(other);
                    }
                }
                w.conclude(job, at, Conclusion::Status);
                w.jobs[job].memory = Memory::Confirming;
                w.jobs[job].launch = Some(at);
            }),
            Memory::Confirming => add("confirms", &|w| {
                if w.launches[at].connection == Connection::Open {
                    w.launches[at].connection = Connection::Confirmed;
                }
                w.jobs[job].memory = Memory::Idle;
                w.jobs[job].launch = None;
            }),
            Memory::Recovering => {
                let answers = matches!(
                    launch.shim,
                    Shim::Forked | Shim::Run | Shim::Reaped | Shim::Written | Shim::Told | Shim::Synced
                );
                if answers && launch.listens && launch.lock == Lock::Shim {
                    add("adopts", &|w| {
                        w.launches[at].connection = Connection::Open;
                        w.jobs[job].memory = Memory::Adopted;
                    });
                }
                if launch.lock == Lock::Free {
                    add("takes the lock", &|w| {
                        w.launches[at].lock = Lock::Host;
                        w.jobs[job].memory = Memory::Locked;
                    });
                }
            }
            Memory::Locked if launch.exit != File::Absent => add("takes the record", &|w| {
                w.launches[at].lock = Lock::Free;
                end_processes(&mut w.launches[at]);
                w.conclude(job, at, Conclusion::Status);
            }),
            Memory::Locked => add("ends what it finds", &|w| {
                end_processes(&mut w.launches[at]);
                w.jobs[job].memory = Memory::Settling;
            }),
            Memory::Settling => add("settles", &|w| {
                let phase = match state.stored {
                    Stored::Armed => StoredPhase::Armed,
                    Stored::Pending => StoredPhase::Pending,
                    _ => StoredPhase::Running,
                };
                let known = Known { phase, same_boot: state.boot == w.boot };
                let nothing = nothing_ran(launch.started != File::Absent, known);
                w.launches[at].lock = Lock::Free;
                w.conclude(job, at, if nothing { Conclusion::NotStarted } else { Conclusion::Lost });
            }),
            _ => {}
        }
    }

    /// What the host does while it is connected to a shim that was told to go.
    fn follow_steps(&self, job: usize, at: usize, steps: &mut Steps<JOBS>) {
        let (state, launch) = (self.jobs[job], self.launches[at]);
        let mut add = |name, change: &dyn Fn(&mut Self)| steps.push((name, self.with(|w| change(w))));
        let adopted_running = state.memory == Memory::Adopted && launch.child != Child::None;
        if state.stored == Stored::Armed && (state.memory == Memory::Went || adopted_running) {
            add("commits pending", &|w| w.commit_pending(job));
        }
        let runs = matches!(launch.child, Child::Alive | Child::Dead)
            && matches!(launch.shim, Shim::Run | Shim::Reaped | Shim::Written | Shim::Told | Shim::Synced);
        if state.stored == Stored::Pending && runs {
            add("commits running", &|w| w.jobs[job].stored = Stored::Running);
        }
        if launch.told && matches!(launch.shim, Shim::Told | Shim::Synced) {
            add("hears of the end", &|w| w.jobs[job].memory = Memory::EndSeen);
        }
        if launch.shim == Shim::Gone {
            add("sees that the shim is gone", &|w| w.jobs[job].memory = Memory::Recovering);
        }
    }

    fn shim_steps(&self, at: usize, steps: &mut Steps<JOBS>) {
        let launch = self.launches[at];
        let mut add =
            |name, change: &dyn Fn(&mut Launch)| steps.push((name, self.with(|w| change(&mut w.launches[at]))));
        match launch.shim {
            Shim::Start if launch.lock == Lock::Free => add("shim locks and is ready", &|l| {
                l.lock = Lock::Shim;
                l.shim = Shim::Ready;
            }),
            Shim::Start => add("shim finds the lock taken and leaves", &|l| l.shim = Shim::Gone),
            Shim::Ready if launch.go => add("shim reads go and leaves its mark", &|l| {
                l.go = false;
                l.started = File::Cached;
                l.shim = Shim::Going;
            }),
            Shim::Ready if launch.connection == Connection::Closed => add("shim reads the end and leaves", &|l| {
                l.lock = Lock::Free;
                l.shim = Shim::Gone;
            }),
            Shim::Going => {
                add("fork", &|l| {
                    l.child = Child::BeforeExec;
                    l.shim = Shim::Forked;
                });
            }
            Shim::Forked => {
                add("exec", &|l| {
                    l.child = Child::Alive;
                    l.runs += 1;
                    l.shim = Shim::Run;
                });
                add("exec fails", &|l| {
                    l.child = Child::Dead;
                    l.shim = Shim::Reaped;
                });
            }
            Shim::Run if launch.child == Child::Alive => add("the command ends", &|l| l.child = Child::Dead),
            Shim::Run => add("shim reaps", &|l| l.shim = Shim::Reaped),
            Shim::Reaped => add("shim writes the record", &|l| {
                l.exit = File::Cached;
                l.wrote = true;
                l.shim = Shim::Written;
            }),
            Shim::Written => add("shim tells", &|l| {
                l.told = true;
                l.shim = Shim::Told;
            }),
            // Or it closes everything of this launch and serves another: then it is that one's shim.
            Shim::Told if launch.connection == Connection::Confirmed => add("shim leaves", &|l| {
                l.lock = Lock::Free;
                l.shim = Shim::Gone;
            }),
            Shim::Told => add("shim makes the record durable", &|l| {
                l.exit = File::Durable;
                l.shim = Shim::Synced;
            }),
            Shim::Synced => add("shim leaves", &|l| {
                l.lock = Lock::Free;
                l.shim = Shim::Gone;
            }),
            _ => {}
        }
        // Where there is nobody any more to confirm its end, it makes the record durable and needs no socket.
        let has_work = matches!(launch.shim, Shim::Run | Shim::Reaped | Shim::Written);
        if launch.connection == Connection::Closed && has_work && !launch.listens {
            add("shim sees its host go and listens", &|l| l.listens = true);
        }
        // The thread that makes the mark durable may finish at any time while the shim lives, or never.
        let after_fork = matches!(launch.shim, Shim::Run | Shim::Reaped | Shim::Written | Shim::Told | Shim::Synced);
        if launch.started == File::Cached && after_fork {
            add("the mark is durable", &|l| l.started = File::Durable);
        }
    }

    fn crash_steps(&self, steps: &mut Steps<JOBS>) {
        if self.host {
            steps.push((
                "KILL host",
                self.with(|w| {
                    w.host = false;
                    w.crashes += 1;
                    for launch in &mut w.launches {
                        if launch.connection == Connection::Open {
                            launch.connection = Connection::Closed;
                        }
                        if launch.lock == Lock::Host {
                            launch.lock = Lock::Free;
                        }
                    }
                }),
            ));
        }
        for at in 0..self.used {
            if !matches!(self.launches[at].shim, Shim::None | Shim::Gone) {
                steps.push((
                    "KILL shim",
                    self.with(|w| {
                        w.crashes += 1;
                        kill_shim(&mut w.launches[at]);
                    }),
                ));
            }
        }
        for marks_survive in [false, true] {
            for records_survive in [false, true] {
                steps.push(("POWER LOSS", self.with(|w| w.power_loss(marks_survive, records_survive))));
            }
        }
    }

    fn power_loss(&mut self, marks_survive: bool, records_survive: bool) {
        self.host = false;
        self.crashes += 1;
        self.boot += 1;
        for launch in &mut self.launches {
            if !matches!(launch.shim, Shim::None | Shim::Gone) {
                kill_shim(launch);
            }
            if launch.child != Child::None {
                launch.child = Child::Dead;
            }
            let after = |file, survives| match file {
                File::Cached if survives => File::Durable,
                File::Cached => File::Absent,
                file => file,
            };
            launch.lost_mark |= launch.started == File::Cached && !marks_survive && launch.runs > 0;
            launch.started = after(launch.started, marks_survive);
            launch.exit = after(launch.exit, records_survive);
            launch.wrote &= launch.exit != File::Absent;
            launch.lock = Lock::Free;
            launch.go = false;
            if launch.connection == Connection::Open {
                launch.connection = Connection::Closed;
            }
        }
    }

    /// The property that does not hold, if any.
    fn broken(&self) -> Option<&'static str> {
        for launch in &self.launches[..self.used] {
            if launch.runs > 1 {
                return Some("1: a command started twice for one launch");
            }
            if launch.conclusion == Conclusion::NotStarted && launch.runs > 0 && (launch.pending || !launch.lost_mark) {
                return Some("1: a launch that ran was taken for one that did not");
            }
            if launch.conclusion == Conclusion::Lost && launch.wrote {
                return Some("3: a status was written and not taken");
            }
            if launch.conclusion != Conclusion::Open && launch.child == Child::Alive {
                return Some("4: a process of an ended attempt lives");
            }
        }
        let alive = self.launches.iter().filter(|launch| launch.child == Child::Alive).count();
        (alive > 1).then_some("5: two commands run in one slot")
    }

    /// The same world without what can have no consequence any more: the files and the history of launches that are over.
    fn without_the_past(mut self) -> Self {
        for launch in &mut self.launches[..self.used] {
            let is_over = launch.conclusion != Conclusion::Open && matches!(launch.shim, Shim::None | Shim::Gone);
            if is_over && launch.lock == Lock::Free {
                *launch = Launch { shim: Shim::Gone, conclusion: Conclusion::Status, ..NEW };
            }
        }
        self
    }

    /// Of the worlds that differ only in the names of jobs and launches, the same one.
    fn by_one_name(self) -> Self {
        let mut names: [usize; JOBS] = std::array::from_fn(|job| job);
        names.reverse();
        let mirrored = self.renamed(&names).with_launches_in_order();
        self.with_launches_in_order().min(mirrored)
    }

    /// The same world with job `n` called `names[n]`.
    fn renamed(mut self, names: &[usize; JOBS]) -> Self {
        let before = self.jobs;
        for (job, name) in names.iter().enumerate() {
            self.jobs[*name] = before[job];
        }
        for launch in &mut self.launches[..self.used] {
            launch.job = names[launch.job];
        }
        self
    }

    fn with_launches_in_order(mut self) -> Self {
        let mut order: [usize; LAUNCHES] = std::array::from_fn(|at| at);
        let before = self.launches;
        order[..self.used].sort_by_key(|at| before[*at]);
        for (to, from) in order.iter().enumerate() {
            self.launches[to] = before[*from];
        }
        for job in &mut self.jobs {
            job.launch = job.launch.and_then(|launch| order.iter().position(|from| *from == launch));
        }
        self
    }

    /// Whether every job has ended, or waits for a launch that the model does not have.
    fn is_over(&self, scope: Scope) -> bool {
        let none_left = self.used == scope.launches;
        self.jobs.iter().all(|job| {
            job.stored == Stored::Ended || none_left && job.stored == Stored::Queued && job.memory == Memory::Idle
        })
    }
}

/// The child dies with its shim; one before its exec notices that its parent is gone.
fn kill_shim(launch: &mut Launch) {
    launch.shim = Shim::Gone;
    if launch.lock == Lock::Shim {
        launch.lock = Lock::Free;
    }
    end_processes(launch);
}

fn end_processes(launch: &mut Launch) {
    if matches!(launch.child, Child::BeforeExec | Child::Alive) {
        launch.child = Child::Dead;
    }
}

/// Visits every state that can be reached; panics with the way to one that breaks a property, or to one that leads nowhere.
fn explore<const JOBS: usize>(scope: Scope) -> usize {
    let first = World::<JOBS>::new(scope);
    let mut numbers: HashMap<World<JOBS>, u32> = HashMap::from([(first, 0)]);
    let mut worlds = vec![first];
    let mut came_from: Vec<(u32, &'static str)> = vec![(0, "")];
    let mut back: Vec<(u32, u32)> = Vec::new();
    let way = |came_from: &[(u32, &'static str)], mut at: usize| {
        let mut names = Vec::new();
        while at != 0 {
            names.push(came_from[at].1);
            at = came_from[at].0 as usize;
        }
        names.reverse();
        names.join(" > ")
    };
    let mut at = 0;
    while at < worlds.len() {
        let world = worlds[at];
        let from = u32::try_from(at).expect("fewer than 2^32 states");
        for (name, next) in world.steps(scope) {
            if let Some(property) = next.broken() {
                panic!("{property}: {} > {name}", way(&came_from, at));
            }
            let next = next.without_the_past().by_one_name();
            let number = *numbers.entry(next).or_insert_with(|| {
                worlds.push(next);
                came_from.push((from, name));
                u32::try_from(worlds.len() - 1).expect("fewer than 2^32 states")
            });
            back.push((number, from));
        }
        at += 1;
    }
    // Every state must lead to one in which all is over.
    back.sort_unstable();
    let mut leads = vec![false; worlds.len()];
    let mut reached: Vec<u32> = Vec::new();
    for (number, world) in worlds.iter().enumerate() {
        if world.is_over(scope) {
            leads[number] = true;
            reached.push(u32::try_from(number).expect("fewer than 2^32 states"));
        }
    }
    while let Some(to) = reached.pop() {
        let start = back.partition_point(|edge| edge.0 < to);
        for (_, from) in back[start..].iter().take_while(|edge| edge.0 == to) {
            if !std::mem::replace(&mut leads[*from as usize], true) {
                reached.push(*from);
            }
        }
    }
    if let Some(stuck) = leads.iter().position(|leads| !leads) {
        panic!("2: stuck after {}: {:?}", way(&came_from, stuck), worlds[stuck]);
    }
    worlds.len()
}

/// The model must not become small unnoticed: a step that is never taken proves nothing.
fn assert_explored(states: usize, at_least: usize) {
    assert!(states >= at_least, "only {states} states, {at_least} expected: the model has lost steps");
    println!("{states} states");
}

#[test]
fn one_job_keeps_every_property_through_three_crashes() {
    assert_explored(explore::<1>(Scope { launches: 3, crashes: 3, stops: false, retries: 0 }), 75_000);
}

#[test]
fn stops_and_retries_keep_every_property_through_two_crashes() {
    assert_explored(explore::<1>(Scope { launches: 2, crashes: 2, stops: true, retries: 1 }), 450_000);
}

#[test]
fn a_job_that_is_armed_while_another_runs_keeps_every_property_through_a_crash() {
    assert_explored(explore::<2>(Scope { launches: 2, crashes: 1, stops: false, retries: 0 }), 140_000);
}

#[test]
fn two_jobs_with_stops_and_retries_keep_every_property_through_a_crash() {
    assert_explored(explore::<2>(Scope { launches: 2, crashes: 1, stops: true, retries: 1 }), 2_000_000);
}
