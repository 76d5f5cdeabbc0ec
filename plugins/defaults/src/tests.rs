use taxiway_plugin::testing::Host;

use super::*;

fn rewrite(settings: Value, job: &Job) -> Option<Value> {
    let change = Host::new().settings(settings).run(|| Defaults::rewrite(job, &Context::submission()));
    change.expect("it can rewrite")?.new_config().cloned()
}

fn settings() -> Value {
    json!({
        "defaults": {"train": {"batch_size": 8, "lr": 0.1}, "betas": [0.9, 0.99]},
        "output_dir": "/data/out/{job_id}",
        "seed_key": "/train/seed",
        "profiles": {
            "lora": {"defaults": {"train": {"batch_size": 32}, "rank": 16}, "seed_key": false},
            "exact": {"output_overwrite": true, "output_key": "/paths/out", "output_dir": "{job_dir}/out"},
        },
    })
}

#[test]
fn missing_keys_are_filled_in_and_present_ones_stay() {
    let job = Job::new("0193", json!({"train": {"lr": null}, "betas": []}));
    assert_eq!(
        rewrite(settings(), &job),
        Some(json!({
            "train": {"lr": null, "batch_size": 8, "seed": seed::of_job("0193")},
            "betas": [],
            "output_dir": "/data/out/0193",
        }))
    );
}

#[test]
fn a_profile_goes_before_what_is_for_all_and_can_switch_it_off() {
    let job = Job::new("0193", json!({})).with_details(json!({"profile": "lora"}));
    assert_eq!(
        rewrite(settings(), &job),
        Some(json!({
            "train": {"batch_size": 32, "lr": 0.1},
            "rank": 16,
            "betas": [0.9, 0.99],
            "output_dir": "/data/out/0193",
        }))
    );
}

#[test]
fn the_output_directory_replaces_the_authors_only_where_settings_say_so() {
    let details = |profile: &str| json!({"profile": profile, "job_dir": "/jobs/1"});
    let own = Job::new("1", json!({"output_dir": "mine", "paths": {"out": "mine"}}));
    let kept = rewrite(settings(), &own).expect("other keys are missing");
    assert_eq!(kept["output_dir"], "mine");
    let overwritten = rewrite(settings(), &own.with_details(details("exact"))).expect("a change");
    assert_eq!(overwritten["paths"]["out"], "/jobs/1/out");
}

#[test]
fn rewriting_twice_changes_nothing_more() {
    for profile in [None, Some("lora"), Some("exact")] {
        let details = json!({"profile": profile, "job_dir": "/jobs/1"});
        let job = Job::new("0193", json!({"a": 1})).with_details(details.clone());
        let once = rewrite(settings(), &job).expect("something is missing");
        assert_eq!(rewrite(settings(), &Job::new("0193", once).with_details(details)), None, "{profile:?}");
    }
}

#[test]
fn without_settings_nothing_is_changed() {
    assert_eq!(rewrite(json!({}), &Job::new("1", json!({"a": 1}))), None);
}

#[test]
fn the_seed_follows_from_the_job_and_differs_between_jobs() {
    assert_eq!(seed::of_job("0193"), seed::of_job("0193"));
    assert_ne!(seed::of_job("0193"), seed::of_job("0194"));
    assert!(i32::try_from(seed::of_job("0193")).is_ok());
}

#[test]
fn a_value_in_the_way_of_the_seed_is_left_and_logged() {
    let host = Host::new().settings(json!({"seed_key": "/train/seed"}));
    let job = Job::new("1", json!({"train": "fast"}));
    assert_eq!(host.run(|| Defaults::rewrite(&job, &Context::submission())), Ok(None));
    assert_eq!(host.lines().len(), 1);
}

#[test]
fn wrong_settings_are_named() {
    for (settings, path, code) in [
        (json!({"output_dir": "/out/{jobid}"}), "/output_dir", "unknown-placeholder"),
        (json!({"seed_key": "train.seed"}), "/seed_key", "no-pointer"),
        (json!({"profiles": {"a": {"output_key": ""}}}), "/profiles/a/output_key", "no-pointer"),
        (json!({"seed_key": true}), "/seed_key", "wrong-type"),
    ] {
        let problems = Defaults::check_settings(&settings);
        let found: Vec<_> = problems.iter().map(|problem| (problem.path.as_str(), problem.code.as_str())).collect();
        assert_eq!(found, [(path, code)], "{settings}");
    }
    assert!(Defaults::check_settings(&json!({"default": {}})).refuses());
    assert!(Defaults::check_settings(&settings()).is_empty());
}
