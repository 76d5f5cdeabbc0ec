//! Four GPUs and jobs of one, two and four, in many random orders, with a service that is killed among them.

use std::collections::{HashMap, HashSet};

use serde_json::json;
use taxiway_tests::{Place, Random, sh};

const GPUS: u32 = 4;
const JOBS: usize = 16;

/// What the jobs of one story wrote of their starts and ends, in this order.
fn never_two_on_one(story: &str, seed: u64) {
    let mut held: HashMap<String, HashSet<String>> = HashMap::new();
    for line in story.lines() {
        let mut words = line.split(' ');
        let (Some(what), Some(job)) = (words.next(), words.next()) else { panic!("seed {seed}: {line:?}") };
        if what == "-" {
            assert!(held.remove(job).is_some(), "seed {seed}: {job} ended and had not begun");
            continue;
        }
        let gpus: HashSet<String> = words.next().unwrap_or_default().split(',').map(str::to_owned).collect();
        for (other, theirs) in &held {
            assert!(
                theirs.is_disjoint(&gpus),
                "seed {seed}: {job} and {other} have {theirs:?} and {gpus:?} at once\n{story}"
            );
        }
        assert!(held.insert(job.to_owned(), gpus).is_none(), "seed {seed}: {job} began twice");
    }
    assert!(held.is_empty(), "seed {seed}: {held:?} never ended");
}

async fn story(seed: u64) {
    let mut random = Random::of_seed(seed);
    let mut server = Place::new().with_gpus(GPUS).start().await;
    let mut events = server.events().await;
    let file = server.place().path().join("story");
    let script = format!(
        "echo \"+ $TAXIWAY_JOB_ID $CUDA_VISIBLE_DEVICES\" >> '{0}'; sleep 0.0$1; echo \"- $TAXIWAY_JOB_ID\" >> '{0}'",
        file.display()
    );
    let mut jobs = Vec::new();
    let killed_at = random.below(JOBS as u64) as usize;
    for number in 0..JOBS {
        if number == killed_at {
            server = server.kill().await.start().await;
            events.resume(&server).await;
        }
        let mut submission = sh(&script);
        let command = submission["command"].as_array_mut().expect("a list");
        command.extend([json!("sh"), json!(random.below(9).to_string())]);
        submission["gpus"] = json!([1, 1, 2, 4][random.below(4) as usize]);
        jobs.push(server.submit(submission).await);
    }
    for job in &jobs {
        assert_eq!(events.end_of(job.id()).await, "completed", "seed {seed}");
    }
    never_two_on_one(&std::fs::read_to_string(&file).expect("the jobs wrote it"), seed);
    // The head is never overtaken: jobs are told to start in the order of the line.
    let mut started: Vec<(u64, usize)> = Vec::new();
    for (number, job) in jobs.iter().enumerate() {
        let told: Vec<u64> =
            events.seen().iter().filter(|event| event.is(job.id(), "pending")).map(|event| event.id).collect();
        // A start that the killed service did not get done is told again.
        started.push((*told.last().expect("it was told to start"), number));
    }
    let order: Vec<usize> = {
        let mut by_start = started.clone();
        by_start.sort_unstable();
        by_start.into_iter().map(|(_, number)| number).collect()
    };
    assert_eq!(order, (0..JOBS).collect::<Vec<_>>(), "seed {seed}");
}

#[tokio::test]
async fn jobs_of_one_two_and_four_gpus_never_share_one_and_never_overtake_each_other() {
    for seed in 1..=6 {
        story(seed).await;
    }
}
