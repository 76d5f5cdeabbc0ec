//! The service itself.

use std::fs::OpenOptions;
use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::client::Answer;
use crate::{Client, Events, Job, Place, patiently};

/// A free port of this machine.
pub const ANY_PORT: &str = "127.0.0.1:0";

/// Names another binary to test.
const PROGRAM_VARIABLE: &str = "TAXIWAY_BIN";

/// The binary under test: `$TAXIWAY_BIN`, else the one that Cargo has built for these tests.
#[must_use]
pub fn program() -> PathBuf {
    if let Some(path) = std::env::var_os(PROGRAM_VARIABLE) {
        return path.into();
    }
    let test = std::env::current_exe().expect("a test knows its file");
    // Tests are in TARGET/PROFILE/deps, programs in TARGET/PROFILE.
    let found = test
        .ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join("taxiway-under-test"))
        .find(|path| path.is_file());
    found.unwrap_or_else(|| {
        panic!("taxiway-under-test is not beside {}: run `cargo nextest run -p taxiway-tests`, which builds it, or set {PROGRAM_VARIABLE}", test.display())
    })
}

/// A service that runs. It is killed when this goes.
#[derive(Debug)]
pub struct Server {
    // Before the place, so that nothing is started any more when the place ends the jobs.
    child: Child,
    /// Kept open: the service must not die of a closed pipe.
    _output: Lines<BufReader<ChildStdout>>,
    client: Client,
    address: String,
    place: Place,
}

impl Server {
    pub(crate) async fn start(place: Place, arguments: &[&str]) -> Self {
        let mut child = command(&place, ANY_PORT)
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the service can be executed");
        let mut output = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let line = patiently("the service's first line", output.next_line()).await.expect("it can be read");
        let address = line.as_deref().and_then(|line| line.strip_prefix("listening on http://")).map(str::to_owned);
        // The place's Drop shows the service's log.
        let address = address.unwrap_or_else(|| panic!("the service did not start; it said {line:?}"));
        let client = Client::tcp(&address, Some(place.token()));
        Self { child, _output: output, client, address, place }
    }

    /// `HOST:PORT`
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Where it runs.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// A client with the administrator's token.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// A client over the unix socket, without a token.
    #[must_use]
    pub fn unix_client(&self) -> Client {
        Client::unix(&self.place.data_dir().join("taxiway.sock"))
    }

    /// The service's own process.
    #[must_use]
    pub fn pid(&self) -> i32 {
        let pid = self.child.id().expect("it has not been waited for");
        i32::try_from(pid).expect("a process id")
    }

    /// `kill -9`.
    pub async fn kill(mut self) -> Place {
        self.child.kill().await.expect("it can be killed");
        self.place
    }

    /// SIGTERM; waits for its end.
    pub async fn stop(mut self) -> (Place, ExitStatus) {
        kill(Pid::from_raw(self.pid()), Signal::SIGTERM).expect("it runs");
        let status = patiently("the service to stop", self.child.wait()).await.expect("it is a child");
        (self.place, status)
    }

    /// Waits for its end, of its own accord.
    pub async fn ended(mut self) -> (Place, ExitStatus) {
        let status = patiently("the service to end", self.child.wait()).await.expect("it is a child");
        (self.place, status)
    }

    /// Every event from the first on.
    pub async fn events(&self) -> Events {
        Events::from(&self.client, 0).await
    }

    /// Submits a job, which has to be accepted. Unless it says otherwise it may run for ten minutes: should a test be killed,
    /// its jobs do not stay for ever.
    pub async fn submit(&self, mut submission: Value) -> Job {
        if submission["time_limit"].is_null() {
            submission["time_limit"] = 600.into();
        }
        self.client.post("/jobs", &submission).await.expect(201).job()
    }

    /// A job as it is now.
    pub async fn job(&self, id: &str) -> Job {
        self.client.get(&format!("/jobs/{id}")).await.expect(200).job()
    }

    /// Its whole log.
    pub async fn log(&self, id: &str) -> String {
        self.client.get(&format!("/jobs/{id}/log")).await.expect(200).text()
    }

    /// Every job there is, the oldest first.
    pub async fn jobs(&self) -> Vec<Job> {
        let mut jobs = Vec::new();
        let mut cursor = String::new();
        loop {
            let page = self.client.get(&format!("/jobs?sort=submitted_at&limit=1000{cursor}")).await.expect(200).json();
            jobs.extend(page["items"].as_array().expect("items").iter().map(|job| Job { json: job.clone() }));
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return jobs,
            }
        }
    }

    /// An operation on a job.
    pub async fn operate(&self, id: &str, verb: &str) -> Answer {
        self.client.post_nothing(&format!("/jobs/{id}/{verb}")).await
    }

    /// A plugin as it stands, once it is as `wanted` says.
    pub async fn plugin(&self, name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        patiently(&format!("the plugin {name}"), async {
            loop {
                let plugins = self.client.get("/plugins").await.expect(200).json();
                let found = plugins["items"].as_array().expect("items").iter().find(|plugin| plugin["name"] == name);
                if let Some(plugin) = found.filter(|plugin| wanted(plugin)) {
                    return plugin.clone();
                }
                // No event tells of a plugin, so it is asked for again.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
    }

    /// A command of the command line, which finds this service by its data directory.
    pub async fn cli(&self, arguments: &[&str]) -> Output {
        let mut command = bare_command(&self.place);
        command.args(arguments).env("TAXIWAY_DATA_DIR", self.place.data_dir()).stdin(Stdio::null());
        patiently("the command to end", command.output()).await.expect("the program can be executed")
    }
}

impl Deref for Server {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

/// Starts a service that has to refuse to start, and says what it wrote to stderr.
pub async fn start_refused(place: &Place, listen: &str, arguments: &[&str]) -> String {
    let mut command = command(place, listen);
    command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = patiently("the refusal", command.output()).await.expect("the program can be executed");
    assert!(!output.status.success(), "the service did not refuse to start");
    assert!(output.stdout.is_empty(), "it said that it listens");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// `taxiway serve` in this place.
fn command(place: &Place, listen: &str) -> Command {
    let log = OpenOptions::new().create(true).append(true).open(place.log_file()).expect("a log");
    let mut command = bare_command(place);
    command
        .args(["serve", "--listen", listen, "--config"])
        .args([&place.config_file(), Path::new("--data-dir"), place.data_dir()])
        .args([Path::new("--plugins-dir"), &place.plugins_dir()])
        .stdin(Stdio::null())
        .stderr(log)
        .kill_on_drop(true);
    // SAFETY: between fork and exec only prctl(2) is called, which allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(|| {
            // A test that is killed takes its service with it.
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(io::Error::from)
        });
    }
    command
}

/// The program in an environment of the test's own: nothing of whoever runs the tests gets in.
fn bare_command(place: &Place) -> Command {
    let mut command = Command::new(place.own_program().map_or_else(program, Path::to_owned));
    command
        .current_dir(place.path())
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", place.path())
        // No job may see it.
        .env("CANARY", "a secret of the service")
        // With the GPUs that the test says every machine is the same.
        .envs(place.gpu_variables())
        .envs(place.variables());
    command
}
