//! The service is killed at random moments under load. Nothing that it acknowledged is lost, undone or done twice, and its line
//! keeps its order.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::Method;
use serde_json::{Value, json};
use taxiway_tests::{Answer, Client, Connection, Events, Place, Random, Server, number, patiently};

/// How many times it is killed; `TAXIWAY_TEST_KILLS` asks for another number.
const KILLS: u64 = 200;
/// `TAXIWAY_TEST_SEED` repeats the moments of another run, as far as moments can be repeated.
const SEED: u64 = 20_260_131;
/// How many people submit and change jobs at a time, each those of their own.
const USERS: usize = 4;
/// Jobs that have not ended above which nobody submits: at the end all of them run.
const OPEN: u64 = 40;
/// Jobs whose time does not come, moved about by one more.
const SHUFFLED: usize = 12;
/// Events after which a service has lived long enough.
const LIFE: u64 = 200;

/// What a user knows of whether a job is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hold {
    /// Nobody asked, or a release was acknowledged.
    No,
    /// An answer did not come.
    Unknown,
    /// It was acknowledged.
    Yes,
}

/// A job that was acknowledged to a user.
#[derive(Debug)]
struct Mine {
    id: String,
    hold: Hold,
    /// A cancel of it was acknowledged.
    cancelled: bool,
    /// Something was asked of it, whether it was answered or not.
    touched: bool,
}

/// Somebody who submits jobs and changes their mind about them.
#[derive(Debug)]
struct User {
    jobs: Vec<Mine>,
    random: Random,
    /// Operations that were carried out.
    changes: u64,
}

/// What every user needs to know.
#[derive(Debug, Clone)]
struct Site {
    client: Client,
    /// Where jobs write down their own id when they run.
    ran: Arc<str>,
    /// Jobs that have not ended.
    open: Arc<AtomicU64>,
}

/// The service has gone.
struct Gone;

async fn ask(site: &Site, connection: &mut Connection, path: &str, body: Option<&Value>) -> Result<Answer, Gone> {
    let request = site.client.request(Method::POST, &format!("/api/v1/jobs{path}"));
    let request = if let Some(body) = body { request.json(body) } else { request };
    connection.send(request).await.map_err(|_| Gone)
}

impl User {
    fn new(seed: u64) -> Self {
        Self { jobs: Vec::new(), random: Random::of_seed(seed), changes: 0 }
    }

    /// Works until the service is gone.
    async fn work(mut self, site: Site) -> Self {
        if let Ok(mut connection) = site.client.connect().await {
            while self.act(&site, &mut connection).await.is_ok() {}
        }
        self
    }

    async fn act(&mut self, site: &Site, connection: &mut Connection) -> Result<(), Gone> {
        let submits = self.jobs.is_empty() || self.random.below(2) == 0;
        if submits && site.open.load(Ordering::Relaxed) < OPEN {
            return self.submit(site, connection).await;
        }
        if self.random.below(3) == 0
            && let Some(held) = self.jobs.iter().position(|job| job.hold == Hold::Yes)
        {
            return self.operate(site, connection, held, "release").await;
        }
        // One of the latest: the others have ended.
        let latest = self.jobs.len() as u64;
        let Some(back) = latest.checked_sub(1).map(|_| self.random.below(latest.min(OPEN))) else { return Ok(()) };
        let index = (latest - 1 - back) as usize;
        match self.random.below(4) {
            0 => self.operate(site, connection, index, "cancel").await,
            1 => self.operate(site, connection, index, "hold").await,
            _ => self.operate(site, connection, index, "move").await,
        }
    }

    async fn submit(&mut self, site: &Site, connection: &mut Connection) -> Result<(), Gone> {
        let code = if self.random.below(4) == 0 { 7 } else { 0 };
        let script = format!("echo $TAXIWAY_JOB_ID >> '{}'; exit {code}", site.ran);
        // Most in the lane that has only one place, and so an order.
        let gpus = u64::from(self.random.below(4) != 0);
        let name = format!("exit-{code}");
        let body = json!({"name": name, "command": ["/bin/sh", "-c", script], "gpus": gpus, "time_limit": "10m"});
        let job = ask(site, connection, "", Some(&body)).await?.expect(201).job();
        site.open.fetch_add(1, Ordering::Relaxed);
        self.jobs.push(Mine { id: job.id().to_owned(), hold: Hold::No, cancelled: false, touched: false });
        Ok(())
    }

    async fn operate(
        &mut self,
        site: &Site,
        connection: &mut Connection,
        index: usize,
        verb: &str,
    ) -> Result<(), Gone> {
        let body = (verb == "move").then(|| match self.random.below(3) {
            0 => json!({"to": "front"}),
            1 => json!({"to": "back"}),
            _ => json!({"to": {"position": 1 + self.random.below(OPEN)}}),
        });
        let job = &mut self.jobs[index];
        job.touched = true;
        let before = job.hold;
        if matches!(verb, "hold" | "release" | "cancel") {
            job.hold = Hold::Unknown;
        }
        let answer = ask(site, connection, &format!("/{}/{verb}", job.id), body.as_ref()).await?;
        if answer.status == 409 {
            // It has ended, or runs, or is not where the operation begins.
            job.hold = before;
            return Ok(());
        }
        let state = answer.expect(200).job().state().to_owned();
        self.changes += 1;
        match verb {
            "hold" => {
                assert_eq!(state, "held", "{}", job.id);
                job.hold = Hold::Yes;
            }
            "cancel" => {
                assert!(["cancelled", "cancelling"].contains(&state.as_str()), "{}: {state}", job.id);
                (job.hold, job.cancelled) = (Hold::No, true);
            }
            "release" => job.hold = Hold::No,
            _ => {}
        }
        Ok(())
    }
}

/// Somebody who keeps jobs that never start in an order of their own.
#[derive(Debug)]
struct Shuffler {
    order: Vec<String>,
    /// The order if the move that was not answered has been carried out.
    perhaps: Option<Vec<String>>,
    random: Random,
    moves: u64,
}

impl Shuffler {
    async fn new(server: &Server, seed: u64) -> Self {
        let mut order = Vec::new();
        for _ in 0..SHUFFLED {
            let body = json!({"name": "shuffled", "command": ["false"], "not_before": "2100-01-01T00:00:00Z"});
            order.push(server.submit(body).await.id().to_owned());
        }
        Self { order, perhaps: None, random: Random::of_seed(seed), moves: 0 }
    }

    /// Works until the service is gone.
    async fn work(mut self, site: Site) -> Self {
        let Ok(mut connection) = site.client.connect().await else { return self };
        loop {
            let mut after = self.order.clone();
            let job = after.remove(self.random.below(SHUFFLED as u64) as usize);
            let index = self.random.below(SHUFFLED as u64) as usize;
            let target = match after.get(index) {
                Some(other) => json!({"before": other}),
                None => json!("back"),
            };
            after.insert(index, job.clone());
            self.perhaps = Some(after.clone());
            let Ok(answer) = ask(&site, &mut connection, &format!("/{job}/move"), Some(&json!({"to": target}))).await
            else {
                return self;
            };
            answer.expect(200);
            (self.order, self.perhaps) = (after, None);
            self.moves += 1;
        }
    }

    /// The order is the one that was acknowledged, or what the last move was to make of it.
    async fn check(&mut self, server: &Server) {
        // At one moment: positions change with every start.
        let page = server.get("/jobs?name=shuffled").await.expect(200).json();
        let jobs = page["items"].as_array().expect("items");
        assert!(jobs.iter().all(|job| job["state"] == "queued"), "{page}");
        let mut found: Vec<_> = jobs.iter().map(|job| (job["position"].as_u64(), job["id"].as_str())).collect();
        found.sort_unstable();
        let found: Vec<String> = found.into_iter().filter_map(|(_, id)| id.map(str::to_owned)).collect();
        if self.perhaps.take().is_none_or(|perhaps| perhaps != found) {
            assert_eq!(found, self.order, "an acknowledged move is lost, or another one was made");
        }
        self.order = found;
    }
}

/// Every job that is held, as its id.
async fn held(server: &Server) -> HashSet<String> {
    let page = server.get("/jobs?state=held&limit=1000").await.expect(200).json();
    assert_eq!(page["next_cursor"], Value::Null, "they fit on a page");
    let items = page["items"].as_array().expect("items").iter();
    items.map(|job| job["id"].as_str().expect("an id").to_owned()).collect()
}

/// Lets the service live for a random number of events, and a random moment more.
async fn live_for_a_while(events: &mut Events, random: &mut Random, open: &AtomicU64) {
    for _ in 0..random.below(LIFE) {
        let event = patiently("an event", events.next()).await.expect("the service lives");
        if event.is_end() {
            open.fetch_sub(1, Ordering::Relaxed);
        }
    }
    // Otherwise it would always die just after a commit. What is waited for here is nothing: the moment is the test.
    tokio::time::sleep(Duration::from_micros(random.below(5_000))).await;
}

/// Where each job was, in the order of the events.
fn stories(events: &Events) -> HashMap<String, Vec<String>> {
    let mut stories: HashMap<String, Vec<String>> = HashMap::new();
    for event in events.seen() {
        let state = event.kind.strip_prefix("job.").filter(|kind| !["moved", "progress"].contains(kind));
        if let (Some(id), Some(state)) = (&event.job_id, state) {
            stories.entry(id.clone()).or_default().push(state.to_owned());
        }
    }
    stories
}

/// The jobs of `among` in the order in which they first came into this state.
fn order_of<'a>(events: &'a Events, state: &str, among: &HashSet<&str>) -> Vec<&'a str> {
    let mut seen = HashSet::new();
    let kind = format!("job.{state}");
    let came = events.seen().iter().filter(|event| event.kind == kind).filter_map(|event| event.job_id.as_deref());
    came.filter(|id| among.contains(id) && seen.insert(*id)).collect()
}

#[tokio::test]
async fn a_service_killed_at_any_moment_loses_no_acknowledged_change_and_runs_no_job_twice() {
    let kills = number("TAXIWAY_TEST_KILLS", KILLS);
    let seed = number("TAXIWAY_TEST_SEED", SEED);
    let began = Instant::now();
    let mut random = Random::of_seed(seed);
    let mut server = Place::new().config("[queue]\ncpu_slots = 2\n").start().await;
    let ran = server.place().path().join("ran");
    let site = |server: &Server, open: u64| Site {
        client: server.client().clone(),
        ran: ran.to_str().expect("a path").into(),
        open: Arc::new(AtomicU64::new(open)),
    };
    let mut events = server.events().await;
    let mut shuffler = Shuffler::new(&server, seed).await;
    let mut users: Vec<User> = (1..=USERS as u64).map(|number| User::new(seed + number)).collect();
    for _ in 0..kills {
        let queue = server.get("/queue").await.expect(200).json();
        let open = queue["queued"].as_u64().expect("a number") - SHUFFLED as u64;
        let site = site(&server, open);
        let shuffling = tokio::spawn(shuffler.work(site.clone()));
        let working: Vec<_> = users.into_iter().map(|user| tokio::spawn(user.work(site.clone()))).collect();
        live_for_a_while(&mut events, &mut random, &site.open).await;
        let place = server.kill().await;
        shuffler = shuffling.await.expect("it only stops");
        users = Vec::new();
        for user in working {
            users.push(user.await.expect("it only stops"));
        }
        server = place.start().await;
        events.resume(&server).await;
        shuffler.check(&server).await;
        let held = held(&server).await;
        let released: Vec<_> = users
            .iter()
            .flat_map(|user| &user.jobs)
            .filter(|job| job.hold == Hold::Yes && !held.contains(&job.id))
            .collect();
        assert!(released.is_empty(), "these were held, and are not any more: {released:?}");
    }
    for id in held(&server).await {
        server.operate(&id, "release").await.expect(200);
    }

    // What was stored without an answer counts too: it runs like any other.
    let stored = server.jobs().await;
    let all: HashMap<&str, u64> = stored
        .iter()
        .filter(|job| job.json["name"] != "shuffled")
        .map(|job| (job.id(), job.json["gpus"].as_u64().expect("a number")))
        .collect();
    let mine: Vec<&Mine> = users.iter().flat_map(|user| &user.jobs).collect();
    let lost: Vec<_> = mine.iter().filter(|job| !all.contains_key(job.id.as_str())).collect();
    assert!(lost.is_empty(), "{} of {} acknowledged jobs are lost: {lost:?}", lost.len(), mine.len());
    let mut ended: HashSet<String> =
        events.seen().iter().filter(|event| event.is_end()).filter_map(|event| event.job_id.clone()).collect();
    while ended.len() < all.len() {
        let event = patiently("the rest to end", events.next()).await.expect("the service lives");
        if event.is_end() {
            ended.extend(event.job_id);
        }
    }

    let text = std::fs::read_to_string(&ran).expect("they ran");
    let mut runs: HashMap<&str, usize> = HashMap::new();
    for id in text.lines() {
        *runs.entry(id).or_default() += 1;
    }
    let touched: HashSet<&str> = mine.iter().filter(|job| job.touched).map(|job| job.id.as_str()).collect();
    let cancelled: HashSet<&str> = mine.iter().filter(|job| job.cancelled).map(|job| job.id.as_str()).collect();
    let stories = stories(&events);
    for job in server.jobs().await.iter().filter(|job| job.json["name"] != "shuffled") {
        let (id, runs) = (job.id(), runs.get(job.id()).copied().unwrap_or(0));
        if cancelled.contains(id) || (touched.contains(id) && job.state() == "cancelled") {
            assert_eq!(job.state(), "cancelled", "{}", job.json);
            assert!(runs <= 1, "it ran {runs} times: {}", job.json);
            continue;
        }
        let (end, code) = if job.json["name"] == "exit-7" { ("failed", 7) } else { ("completed", 0) };
        assert_eq!((job.state(), job.exit_code()), (end, Some(code)), "{}", job.json);
        assert_eq!(runs, 1, "how often it ran: {}", job.json);
        if !touched.contains(id) {
            assert_eq!(stories[id], ["queued", "pending", "running", end], "{id}");
        }
    }
    let in_order: HashSet<&str> =
        all.iter().filter(|(id, gpus)| **gpus == 1 && !touched.contains(*id)).map(|(id, _)| *id).collect();
    // As they ran, one after the other on one slot. Events of two starts that a kill kept from the store come in any order.
    let as_they_ran: Vec<&str> = text.lines().filter(|id| in_order.contains(id)).collect();
    assert_eq!(as_they_ran, order_of(&events, "queued", &in_order), "first come, first served");
    shuffler.check(&server).await;

    let changes: u64 = users.iter().map(|user| user.changes).sum();
    eprintln!(
        "{kills} kills in {:.0?}: {} jobs acknowledged, {} stored, {} cancelled, {changes} changes, {} moves of jobs that stay, {} \
         in order (TAXIWAY_TEST_SEED={seed})",
        began.elapsed(),
        mine.len(),
        all.len(),
        cancelled.len(),
        shuffler.moves,
        in_order.len()
    );
    // A change of a job that is armed waits for its shim to leave, and on a busy machine a service may be killed before that.
    assert!(mine.len() as u64 > kills && changes > kills / 4 && shuffler.moves > kills, "there was a load");
    let place = server.kill().await;
    let database = rusqlite::Connection::open(place.data_dir().join("taxiway.db")).expect("a database");
    let verdict: String = database.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("an answer");
    assert_eq!(verdict, "ok");
}
