//! GPUs that a test describes: the service loads a stand-in for NVIDIA's library and the real wrapper around it.

use std::path::PathBuf;

use serde_json::Value;
use taxiway_fake_nvml::Machine;

use crate::{Events, Gate, Job, Place, Server, patiently, sh};

impl Place {
    /// A place with this many GPUs, `GPU-fake-0` and so on, of 80 GiB each.
    #[must_use]
    pub fn with_gpus(self, count: u32) -> Self {
        Machine::with_gpus(count).write(&self.machine_file()).expect("a file of GPUs");
        self
    }

    /// Changes the GPUs, also while the service runs: from the next call of NVML on.
    pub fn change_gpus(&self, change: impl FnOnce(&mut Machine)) {
        let text = std::fs::read(self.machine_file()).expect("the place has GPUs");
        let mut machine: Machine = serde_json::from_slice(&text).expect("a machine");
        change(&mut machine);
        machine.write(&self.machine_file()).expect("a file of GPUs");
    }

    /// The variables with which the service finds these GPUs; a place without any has no NVML, whatever machine it is on.
    pub(crate) fn gpu_variables(&self) -> Vec<(&'static str, PathBuf)> {
        if !self.machine_file().exists() {
            return vec![("TAXIWAY_NVML_LIBRARY", PathBuf::new())];
        }
        vec![("TAXIWAY_NVML_LIBRARY", library()), (taxiway_fake_nvml::FILE_VARIABLE, self.machine_file())]
    }

    fn machine_file(&self) -> PathBuf {
        self.path().join("gpus.json")
    }
}

/// The stand-in, which Cargo builds beside these tests because they link its types.
fn library() -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its file");
    // Tests and libraries are in TARGET/PROFILE/deps.
    let found = test.parent().expect("it is in a directory").join("libtaxiway_fake_nvml.so");
    assert!(
        found.is_file(),
        "{} is not there: run `cargo nextest run -p taxiway-tests`, which builds it",
        found.display()
    );
    found
}

impl Place {
    /// Starts it, and a job that holds a GPU until its gate is opened, which then does `script`.
    pub async fn start_with_a_job(self, script: &str) -> (Server, Events, Gate, Job) {
        let server = self.start().await;
        let mut events = server.events().await;
        let gate = Gate::new(server.place().path(), "gate");
        let job = server.submit(sh(&format!("{}; {script}", gate.wait()))).await;
        events.job(job.id(), "running").await;
        (server, events, gate, job)
    }
}

impl Server {
    /// A slot as `GET /gpus` has it.
    pub async fn gpu(&self, index: usize) -> Value {
        let gpus = self.client().get("/gpus").await.expect(200).json();
        gpus["items"][index].clone()
    }

    /// The first sample of a GPU that is as `wanted` says.
    pub async fn sample(&self, uuid: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        patiently("a sample of a GPU", async {
            loop {
                let series = self.client().get(&format!("/gpus/{uuid}/metrics")).await.expect(200).json();
                let samples = series["samples"].as_array().expect("samples");
                if let Some(sample) = samples.iter().find(|sample| wanted(sample)) {
                    return sample.clone();
                }
                // No event tells of a sample, so they are asked for again.
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        })
        .await
    }
}
