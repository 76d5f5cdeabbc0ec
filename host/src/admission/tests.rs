use std::sync::Mutex;

use async_trait::async_trait;
use serde_json::json;
use taxiway_job::{FailureClass, Retries, Severity};
use taxiway_plugin_host::{CallError, Called, Mode, OnError, Rewritten, Variable};

use super::*;
use crate::config::ProfileDefaults;
use crate::gpu;
use crate::queue::LaunchVerdict;

/// What a plugin of these tests does.
#[derive(Clone)]
enum Does {
    Says(Vec<(&'static str, taxiway_plugin_host::Severity)>),
    Sets(&'static str, Value),
    Labels(&'static str, &'static str),
    Variable(&'static str, &'static str, bool),
    Breaks(OnError),
    IsCrowded(OnError),
    Replaces(Value),
}

#[derive(Clone)]
struct Plugin {
    name: &'static str,
    hook: Hook,
    stage: Stage,
    mode: Mode,
    does: Does,
    seen: Arc<Mutex<Vec<(JobView, Context)>>>,
}

fn plugin(name: &'static str, hook: Hook, does: Does) -> Plugin {
    Plugin { name, hook, stage: Stage::Submit, mode: Mode::Enforce, does, seen: Arc::default() }
}

fn says(name: &'static str, problems: &[(&'static str, taxiway_plugin_host::Severity)]) -> Plugin {
    plugin(name, Hook::Validate, Does::Says(problems.to_vec()))
}

const ERROR: taxiway_plugin_host::Severity = taxiway_plugin_host::Severity::Error;
const WARNING: taxiway_plugin_host::Severity = taxiway_plugin_host::Severity::Warning;

impl Plugin {
    fn called<T>(&self, job: &JobView, context: &Context, answer: impl FnOnce() -> T) -> Called<T> {
        self.seen.lock().unwrap().push((job.clone(), context.clone()));
        let result = match self.does {
            Does::Breaks(on_error) => Err(CallError {
                plugin: self.name.into(),
                version: "1.0.0".into(),
                kind: FailureKind::Timeout,
                limit: Some("timeout of 2 s".into()),
                message: "it ran past its timeout of 2 s".into(),
                on_error,
                retry_after: None,
            }),
            Does::IsCrowded(on_error) => Err(CallError {
                plugin: self.name.into(),
                version: "1.0.0".into(),
                kind: FailureKind::Busy,
                limit: Some("wait of 10 s".into()),
                message: "there was no place for its call".into(),
                on_error,
                retry_after: None,
            }),
            _ => Ok(answer()),
        };
        Called { result, duration: Duration::from_millis(3), peak_memory_bytes: 0, log: Vec::new() }
    }
}

#[async_trait]
impl Guest for Plugin {
    fn name(&self) -> &str {
        self.name
    }

    fn version(&self) -> &str {
        "1.0.0"
    }

    fn sha256(&self) -> &str {
        "abcd"
    }

    fn mode(&self) -> Mode {
        self.mode
    }

    fn on_error(&self) -> OnError {
        match self.does {
            Does::Breaks(on_error) | Does::IsCrowded(on_error) => on_error,
            _ => OnError::Reject,
        }
    }

    async fn rewrite(&self, job: &JobView, context: &Context) -> Called<Option<Rewritten>> {
        let nothing = Rewritten { config: None, env: Vec::new(), labels: Vec::new(), patch: json!([]) };
        self.called(job, context, || match &self.does {
            Does::Sets(key, value) => {
                let mut config = job.config.clone();
                config[*key] = value.clone();
                let patch = json!([{"op": "add", "path": format!("/{key}"), "value": value}]);
                Some(Rewritten { config: Some(config), patch, ..nothing })
            }
            Does::Labels(name, value) => Some(Rewritten { labels: vec![((*name).into(), (*value).into())], ..nothing }),
            Does::Variable(name, value, secret) => {
                let variable = Variable { name: (*name).into(), value: (*value).into(), secret: *secret };
                Some(Rewritten { env: vec![variable], ..nothing })
            }
            Does::Replaces(config) => Some(Rewritten { config: Some(config.clone()), ..nothing }),
            _ => None,
        })
    }

    async fn validate(&self, job: &JobView, context: &Context) -> Called<Vec<taxiway_plugin_host::Problem>> {
        self.called(job, context, || match &self.does {
            Does::Says(problems) => problems
                .iter()
                .map(|(code, severity)| taxiway_plugin_host::Problem {
                    plugin: self.name.into(),
                    severity: *severity,
                    path: "/lr".into(),
                    code: (*code).into(),
                    message: format!("{code} it is"),
                    help: None,
                })
                .collect(),
            _ => Vec::new(),
        })
    }
}

struct Plugins(Vec<Plugin>);

#[async_trait]
impl Hooks for Plugins {
    async fn ready(&self) {}

    fn in_force(&self, hook: Hook, stage: Stage, _: Option<&str>) -> Vec<Box<dyn Guest>> {
        let concerned = self.0.iter().filter(|plugin| plugin.hook == hook && plugin.stage == stage);
        concerned.map(|plugin| Box::new(plugin.clone()) as Box<dyn Guest>).collect()
    }
}

fn profiles() -> BTreeMap<String, Profile> {
    let training = Profile {
        command: vec!["python3".into(), "train.py".into(), "{config_file}".into()],
        cwd: Some("/srv".into()),
        env: BTreeMap::from([
            ("A".into(), EnvValue::Plain("profile".into())),
            ("B".into(), EnvValue::Plain("profile".into())),
        ]),
        config_format: ConfigFormat::Toml,
        defaults: ProfileDefaults {
            gpus: Some(0),
            priority: Some(7),
            time_limit: Some(Duration::from_secs(60)),
            grace: None,
            labels: BTreeMap::from([("team".into(), "vision".into())]),
        },
        ..Profile::default()
    };
    BTreeMap::from([
        ("training".into(), training),
        ("evaluation".into(), Profile { command: vec!["true".into()], ..Profile::default() }),
    ])
}

fn admission(plugins: &[Plugin]) -> Admission {
    let no_gpus = gpu::Settings { nvml_library: Some(PathBuf::new()), ..gpu::Settings::default() };
    admission_with(plugins, Inventory::without_gpus(no_gpus).unwrap())
}

fn admission_with(plugins: &[Plugin], gpus: Inventory) -> Admission {
    Admission::new(Options {
        hooks: Arc::new(Plugins(plugins.to_vec())),
        gpus,
        profiles: profiles(),
        grace: Duration::from_secs(30),
        jobs_dir: "/state/jobs".into(),
    })
}

fn draft() -> Draft {
    Draft {
        command: Some(vec!["python3".into(), "train.py".into()]),
        config: Map::from_iter([("lr".to_owned(), json!(0.1))]),
        ..Draft::new(JobId::new())
    }
}

async fn admitted(plugins: &[Plugin], draft: Draft) -> Job {
    admission(plugins).judge(draft, "ann", false).await.expect("is admitted").job
}

async fn refused(plugins: &[Plugin], draft: Draft) -> Refusal {
    admission(plugins).judge(draft, "ann", false).await.expect_err("is refused")
}

fn codes(refusal: &Refusal) -> Vec<(&str, &str)> {
    match refusal {
        Refusal::Problems { problems, .. } => {
            problems.iter().map(|problem| (problem.plugin.as_str(), problem.code.as_str())).collect()
        }
        Refusal::PluginFailed(failure) => panic!("{failure}"),
    }
}

#[tokio::test]
async fn without_plugins_a_draft_becomes_a_queued_job_with_every_default() {
    let job = admitted(&[], draft()).await;
    assert_eq!((job.state, job.attempt, job.reason.as_ref()), (State::Queued, 1, None));
    assert_eq!((job.spec.name.as_str(), job.spec.gpus, job.spec.priority), ("train.py", 1, 0));
    assert_eq!((job.spec.grace, job.spec.time_limit), (Duration::from_secs(30), None));
    assert_eq!(job.submitted_by, "ann");
    assert!(
        job.submitted_config.is_none() && job.rewrites.is_empty() && job.verdicts.is_empty() && job.warnings.is_empty()
    );
}

#[tokio::test]
async fn what_the_submission_says_wins_over_its_profile() {
    let id = JobId::new();
    let job = admitted(&[], Draft { profile: Some("training".into()), ..Draft::new(id) }).await;
    assert_eq!((job.id, job.spec.name.as_str(), job.spec.command.len()), (id, "training", 3));
    assert_eq!((job.spec.gpus, job.spec.priority, job.spec.cwd.as_deref()), (0, 7, Some("/srv")));
    assert_eq!((job.spec.config_format, job.spec.time_limit), (ConfigFormat::Toml, Some(Duration::from_secs(60))));

    let own = Draft {
        profile: Some("training".into()),
        priority: Some(-3),
        env: BTreeMap::from([("A".into(), EnvValue::Plain("own".into()))]),
        labels: BTreeMap::from([("run".into(), "1".into())]),
        ..draft()
    };
    let job = admitted(&[], own).await;
    assert_eq!((job.spec.priority, job.spec.command.len()), (-3, 2));
    assert_eq!((job.spec.env["A"].expose(), job.spec.env["B"].expose()), ("own", "profile"));
    assert_eq!(job.spec.labels.len(), 2);
}

#[tokio::test]
async fn everything_that_is_wrong_with_a_submission_is_told_at_once() {
    let wrong = Draft {
        command: Some(vec!["python3".into(), "{confg_file}".into(), "{epoch}".into()]),
        gpus: Some(9),
        priority: Some(101),
        cwd: Some("data".into()),
        external_id: Some("x".repeat(129)),
        env: BTreeMap::from([
            ("TAXIWAY_JOB_ID".into(), EnvValue::Plain("1".into())),
            ("a=b".into(), EnvValue::Plain("1".into())),
        ]),
        ..draft()
    };
    let refusal = refused(&[says("limits", &[("lr-high", ERROR), ("lr-odd", WARNING)])], wrong).await;
    assert_eq!(
        codes(&refusal),
        [
            ("taxiway", "unknown-placeholder"),
            ("taxiway", "unknown-placeholder"),
            ("taxiway", "too-many-gpus"),
            ("taxiway", "priority-out-of-range"),
            ("taxiway", "relative-cwd"),
            ("taxiway", "bad-external-id"),
            ("taxiway", "reserved-variable"),
            ("taxiway", "bad-variable"),
            ("limits", "lr-high"),
            ("limits", "lr-odd"),
        ]
    );
    let Refusal::Problems { problems, .. } = refusal else { unreachable!() };
    assert_eq!(problems[0].help.as_deref(), Some("did you mean `{config_file}`?"));
    assert_eq!((problems[0].severity, problems[1].severity), (Severity::Error, Severity::Warning));
}

#[tokio::test]
async fn a_job_needs_a_command_or_a_known_profile() {
    let refusal = refused(&[], Draft::new(JobId::new())).await;
    assert_eq!(codes(&refusal), [("taxiway", "no-command")]);
    let validator = says("limits", &[]);
    let refusal = refused(std::slice::from_ref(&validator), Draft { profile: Some("trainin".into()), ..draft() }).await;
    assert_eq!(codes(&refusal), [("taxiway", "unknown-profile")]);
    let Refusal::Problems { problems, .. } = refusal else { unreachable!() };
    assert_eq!(problems[0].help.as_deref(), Some("the profiles are training, evaluation"), "the nearest first");
    assert!(validator.seen.lock().unwrap().is_empty(), "which plugins see it is a matter of its profile");
}

#[tokio::test]
async fn each_rewriter_sees_what_the_one_before_made_and_every_step_is_kept() {
    let first = plugin("defaults", Hook::Rewrite, Does::Sets("seed", json!(1)));
    let second = plugin("paths", Hook::Rewrite, Does::Sets("out", json!("/data")));
    let idle = plugin("idle", Hook::Rewrite, Does::Says(Vec::new()));
    let judge = says("limits", &[]);
    let job = admitted(&[first, second.clone(), idle, judge.clone()], draft()).await;
    assert_eq!(Value::Object(job.config), json!({"lr": 0.1, "seed": 1, "out": "/data"}));
    assert_eq!(job.submitted_config.map(Value::Object), Some(json!({"lr": 0.1})));
    assert_eq!(second.seen.lock().unwrap()[0].0.config, json!({"lr": 0.1, "seed": 1}));
    assert_eq!(judge.seen.lock().unwrap()[0].0.config, json!({"lr": 0.1, "seed": 1, "out": "/data"}));
    let steps: Vec<_> =
        job.rewrites.iter().map(|step| (step.plugin.as_str(), step.patch.as_array().unwrap().len())).collect();
    assert_eq!(steps, [("defaults", 1), ("paths", 1), ("idle", 0)]);
    let outcomes: Vec<_> =
        job.verdicts.iter().map(|verdict| (verdict.hook.as_str(), verdict.outcome.as_str())).collect();
    assert_eq!(
        outcomes,
        [("rewrite", "changed"), ("rewrite", "changed"), ("rewrite", "unchanged"), ("validate", "accepted")]
    );
    assert_eq!((job.verdicts[0].stage.as_str(), job.verdicts[0].sha256.as_str()), ("submit", "abcd"));
}

#[tokio::test]
async fn labels_and_variables_of_a_rewriter_are_set_told_to_the_next_and_kept_without_secrets() {
    let labels = plugin("labels", Hook::Rewrite, Does::Labels("team", "vision"));
    let secret = plugin("tokens", Hook::Rewrite, Does::Variable("HF_TOKEN", "hunter2", true));
    let judge = says("limits", &[]);
    let job = admitted(&[labels, secret, judge.clone()], draft()).await;
    assert_eq!(job.spec.labels["team"], "vision");
    assert_eq!(job.spec.env["HF_TOKEN"].expose(), "hunter2");
    assert!(job.submitted_config.is_none(), "the configuration itself was not changed");
    let details = judge.seen.lock().unwrap()[0].0.details.clone();
    assert_eq!(
        (&details["labels"], &details["env"]),
        (&json!({"team": "vision"}), &json!({"HF_TOKEN": {"secret": null}}))
    );
    assert_eq!(details["job_dir"], json!(format!("/state/jobs/{}", job.id)));
    let verdicts = serde_json::to_string(&job.verdicts).unwrap();
    assert!(
        verdicts.contains("set the variable `HF_TOKEN` to a secret") && verdicts.contains("set the label `team`"),
        "{verdicts}"
    );
    assert!(!verdicts.contains("hunter2") && !format!("{job:?}").contains("hunter2"));
}

#[tokio::test]
async fn warnings_admit_a_job_and_stay_with_it() {
    let job = admitted(&[says("limits", &[("lr-odd", WARNING)])], draft()).await;
    assert_eq!((job.warnings[0].plugin.as_str(), job.warnings[0].code.as_str()), ("limits", "lr-odd"));
}

#[tokio::test]
async fn an_observing_plugin_is_heard_and_not_obeyed() {
    let observing = |plugin: Plugin| Plugin { mode: Mode::Observe, ..plugin };
    let plugins = [
        observing(plugin("defaults", Hook::Rewrite, Does::Sets("seed", json!(1)))),
        observing(says("limits", &[("lr-high", ERROR)])),
        observing(plugin("broken", Hook::Validate, Does::Breaks(OnError::Reject))),
    ];
    let job = admitted(&plugins, draft()).await;
    assert_eq!(Value::Object(job.config), json!({"lr": 0.1}));
    assert!(job.rewrites.is_empty() && job.warnings.is_empty());
    let outcomes: Vec<_> = job.verdicts.iter().map(|verdict| verdict.outcome.as_str()).collect();
    assert_eq!(outcomes, ["observed_changed", "observed_rejected", "observed_failed"]);
    assert_eq!(job.verdicts[1].problems[0].code, "lr-high");
}

#[tokio::test]
async fn the_manifest_says_what_a_plugins_failure_means() {
    let broken = |on_error| [plugin("broken", Hook::Validate, Does::Breaks(on_error)), says("limits", &[])];
    let Refusal::PluginFailed(failure) = refused(&broken(OnError::Reject), draft()).await else {
        panic!("not the user's problem")
    };
    assert_eq!(
        (failure.plugin.as_str(), failure.limit.as_deref(), failure.kind),
        ("broken", Some("timeout of 2 s"), FailureKind::Timeout)
    );

    let job = admitted(&broken(OnError::Ignore), draft()).await;
    assert_eq!(
        (job.state, job.warnings[0].code.as_str(), job.warnings[0].plugin.as_str()),
        (State::Queued, "plugin-failed", "broken")
    );

    let job = admitted(&broken(OnError::Hold), draft()).await;
    let reason = job.reason.expect("why it is held");
    assert_eq!((job.state, reason.code.as_str()), (State::Held, "plugin_failed"));
    assert!(reason.message.contains("`broken`"), "{}", reason.message);
}

#[tokio::test]
async fn a_plugin_that_could_not_be_asked_is_not_blamed_and_fails_no_job() {
    let crowded = plugin("crowded", Hook::Validate, Does::IsCrowded(OnError::Reject));
    let Refusal::PluginFailed(failure) = refused(std::slice::from_ref(&crowded), draft()).await else {
        panic!("not the user's problem")
    };
    assert_eq!(failure.to_string(), "plugin `crowded` could not be asked: there was no place for its call");

    let lenient = plugin("crowded", Hook::Validate, Does::IsCrowded(OnError::Ignore));
    assert_eq!(admitted(&[lenient], draft()).await.warnings[0].code, "plugin-busy");

    let job = admitted(&[], draft()).await;
    for on_error in [OnError::Reject, OnError::Ignore, OnError::Hold] {
        let crowded = Plugin { stage: Stage::Launch, does: Does::IsCrowded(on_error), ..crowded.clone() };
        let broken = Plugin { name: "broken", does: Does::Breaks(OnError::Hold), ..crowded.clone() };
        let judgement = admission(&[broken, crowded.clone()]).judge_launch(&job, Vec::new()).await;
        let LaunchVerdict::Wait(reason) = judgement.verdict else { panic!("it is judged again: {judgement:?}") };
        assert_eq!(reason.code, "plugin_busy");

        let refusing = Plugin { stage: Stage::Launch, ..says("vram", &[("too-big", ERROR)]) };
        let verdict = admission(&[refusing, crowded]).judge_launch(&job, Vec::new()).await.verdict;
        assert!(matches!(verdict, LaunchVerdict::Reject(_)), "whatever the other would say: {verdict:?}");
    }
}

/// A validator that answers once so many are being asked at the same time.
struct Together(Arc<tokio::sync::Barrier>);

#[async_trait]
impl Guest for Together {
    fn name(&self) -> &str {
        "together"
    }

    fn version(&self) -> &str {
        "1.0.0"
    }

    fn sha256(&self) -> &str {
        "abcd"
    }

    fn mode(&self) -> Mode {
        Mode::Enforce
    }

    fn on_error(&self) -> OnError {
        OnError::Reject
    }

    async fn rewrite(&self, _: &JobView, _: &Context) -> Called<Option<Rewritten>> {
        unreachable!("it only validates")
    }

    async fn validate(&self, _: &JobView, _: &Context) -> Called<Vec<taxiway_plugin_host::Problem>> {
        self.0.wait().await;
        Called { result: Ok(Vec::new()), duration: Duration::ZERO, peak_memory_bytes: 0, log: Vec::new() }
    }
}

struct AllTogether(Arc<tokio::sync::Barrier>);

#[async_trait]
impl Hooks for AllTogether {
    async fn ready(&self) {}

    fn in_force(&self, hook: Hook, _: Stage, _: Option<&str>) -> Vec<Box<dyn Guest>> {
        let validators = if hook == Hook::Validate { 5 } else { 0 };
        (0..validators).map(|_| Box::new(Together(self.0.clone())) as Box<dyn Guest>).collect()
    }
}

#[tokio::test]
async fn validators_are_asked_all_at_once_at_both_stages() {
    let no_gpus = gpu::Settings { nvml_library: Some(PathBuf::new()), ..gpu::Settings::default() };
    let admission = Admission::new(Options {
        hooks: Arc::new(AllTogether(Arc::new(tokio::sync::Barrier::new(5)))),
        gpus: Inventory::without_gpus(no_gpus).unwrap(),
        profiles: BTreeMap::new(),
        grace: Duration::from_secs(30),
        jobs_dir: "/state/jobs".into(),
    });
    // One after another they would wait for each other for ever.
    let judged = tokio::time::timeout(Duration::from_secs(60), admission.judge(draft(), "ann", false));
    let job = judged.await.expect("they are asked together").expect("all agree").job;
    assert_eq!(job.verdicts.len(), 5);
    let judged = tokio::time::timeout(Duration::from_secs(60), admission.judge_launch(&job, Vec::new()));
    assert_eq!(judged.await.expect("they are asked together").verdicts.len(), 5);
}

#[tokio::test]
async fn what_a_rewriter_sets_is_told_without_control_characters_and_not_at_length() {
    let value: &'static str = Box::leak(format!("\x1b[2J{}", "x".repeat(10_000)).into_boxed_str());
    let job = admitted(&[plugin("loud", Hook::Rewrite, Does::Variable("A", value, false))], draft()).await;
    assert_eq!(job.spec.env["A"].expose(), value);
    let told = &job.verdicts[0].problems[0].message;
    assert!(told.starts_with("set the variable `A` to `[2Jxxx") && told.len() <= 512, "{told}");
}

#[tokio::test]
async fn a_failed_rewriter_ends_the_chain_and_a_real_error_outweighs_a_failure() {
    let judge = says("limits", &[("lr-high", ERROR)]);
    let broken = plugin("defaults", Hook::Rewrite, Does::Breaks(OnError::Reject));
    let refusal = refused(&[broken, judge.clone()], draft()).await;
    assert!(matches!(refusal, Refusal::PluginFailed(_)));
    assert!(judge.seen.lock().unwrap().is_empty(), "there is nothing to judge");

    let broken = plugin("broken", Hook::Validate, Does::Breaks(OnError::Reject));
    assert_eq!(codes(&refused(&[broken, judge], draft()).await), [("limits", "lr-high"), ("broken", "plugin-failed")]);
}

#[tokio::test]
async fn a_configuration_that_is_no_object_is_the_rewriters_failure() {
    let refusal = refused(&[plugin("odd", Hook::Rewrite, Does::Replaces(json!([1])))], draft()).await;
    let Refusal::PluginFailed(failure) = refusal else { panic!("not the user's problem") };
    assert_eq!(failure.kind, FailureKind::MalformedOutput);
}

#[tokio::test]
async fn what_toml_cannot_say_is_found_in_the_rewritten_configuration() {
    let nulls = plugin("nulls", Hook::Rewrite, Does::Sets("a/b", json!([1, {"c": null}])));
    let refusal = refused(&[nulls], Draft { config_format: Some(ConfigFormat::Toml), ..draft() }).await;
    let Refusal::Problems { problems, config, rewrites, .. } = refusal else { panic!("the user's problem") };
    assert_eq!((problems[0].code.as_str(), problems[0].path.as_str()), ("null-in-toml", "/a~1b/1/c"));
    assert_eq!((config.len(), rewrites.len()), (2, 1));
}

#[tokio::test]
async fn nobody_makes_a_configuration_deeper_than_it_may_be() {
    let deep = |levels: usize| (1..levels).fold(json!({}), |value, _| json!({"a": value}));
    let config = |levels: usize| deep(levels).as_object().unwrap().clone();
    let judge = says("limits", &[]);
    let most = taxiway_job::MOST_LEVELS;
    let job = admitted(std::slice::from_ref(&judge), Draft { config: config(most), ..draft() }).await;
    assert_eq!(job.config, config(most));
    judge.seen.lock().unwrap().clear();
    let refusal = refused(std::slice::from_ref(&judge), Draft { config: config(most + 1), ..draft() }).await;
    assert_eq!(codes(&refusal), [("taxiway", "too-deep")]);
    assert!(judge.seen.lock().unwrap().is_empty(), "no plugin is given what it may not be able to read");

    admitted(&[plugin("deep", Hook::Rewrite, Does::Replaces(deep(most)))], draft()).await;
    let refusal = refused(&[plugin("deep", Hook::Rewrite, Does::Replaces(deep(most + 1)))], draft()).await;
    let Refusal::PluginFailed(failure) = refusal else { panic!("{refusal:?}") };
    assert_eq!((failure.plugin.as_str(), failure.kind), ("deep", FailureKind::MalformedOutput));
}

#[tokio::test]
async fn a_dry_run_tells_plugins_so_and_a_hold_is_kept() {
    let judge = says("limits", &[]);
    let admitted =
        admission(std::slice::from_ref(&judge)).judge(Draft { hold: true, ..draft() }, "ann", true).await.unwrap();
    let (_, context) = judge.seen.lock().unwrap()[0].clone();
    assert_eq!((context.dry_run, context.stage), (true, Stage::Submit));
    assert_eq!((admitted.job.state, admitted.job.reason.unwrap().code.as_str()), (State::Held, "held"));
}

#[tokio::test]
async fn only_plugins_of_the_launch_stage_judge_a_start() {
    let job = admitted(&[], draft()).await;
    let at_launch = |plugin: Plugin| Plugin { stage: Stage::Launch, ..plugin };
    let none = admission(&[says("limits", &[("lr-high", ERROR)])]);
    assert!(!none.has_launch_stage(None));
    assert_eq!(none.judge_launch(&job, Vec::new()).await.verdict, LaunchVerdict::Accept);

    let refusing = admission(&[at_launch(says("vram", &[("too-big", ERROR), ("odd", WARNING), ("too-long", ERROR)]))]);
    assert!(refusing.has_launch_stage(None));
    let judgement = refusing.judge_launch(&job, Vec::new()).await;
    let LaunchVerdict::Reject(failure) = judgement.verdict else { panic!("is refused") };
    assert_eq!((failure.class, failure.evidence.as_deref()), (FailureClass::Preflight, Some("too-big at /lr")));
    assert_eq!(
        failure.message,
        "plugin `vram` refused the job just before its start: too-big it is; 1 more problem was found"
    );
    assert_eq!((judgement.verdicts[0].stage.as_str(), judgement.verdicts[0].outcome.as_str()), ("launch", "rejected"));

    let verdict_when_broken = async |on_error| {
        let broken = at_launch(plugin("broken", Hook::Validate, Does::Breaks(on_error)));
        admission(&[broken]).judge_launch(&job, Vec::new()).await.verdict
    };
    let LaunchVerdict::Reject(failure) = verdict_when_broken(OnError::Reject).await else { panic!("is refused") };
    assert!(failure.evidence.is_some_and(|evidence| evidence.starts_with("plugin-failed")));
    assert!(matches!(verdict_when_broken(OnError::Hold).await, LaunchVerdict::Hold(_)));
    assert_eq!(verdict_when_broken(OnError::Ignore).await, LaunchVerdict::Accept);
}

#[tokio::test]
async fn what_a_job_asks_of_gpus_must_be_there() {
    let codes_of = async |gpus: u32, terms: Terms| {
        let refusal = refused(&[], Draft { gpus: Some(gpus), terms, ..draft() }).await;
        codes(&refusal).iter().map(|(_, code)| (*code).to_owned()).collect::<Vec<_>>()
    };
    let large = Terms { gpu_memory: Some(24 << 30), ..Terms::default() };
    let named = Terms { gpu_uuids: vec!["GPU-1".into()], ..Terms::default() };
    assert_eq!(codes_of(1, large.clone()).await, ["too-many-gpus"], "a virtual slot has no memory");
    assert_eq!(codes_of(1, named).await, ["unknown-gpu"]);
    assert_eq!(codes_of(0, large).await, ["no-gpus"]);
}

#[tokio::test]
async fn what_a_job_asks_of_gpus_that_cannot_be_read_yet_must_be_possible() {
    let admission = admission_with(&[], gpu::tests::one_of_two_unread().await);
    let codes_of = async |gpus: u32, terms: Terms| {
        let draft = Draft { gpus: Some(gpus), terms, ..draft() };
        match admission.judge(draft, "ann", false).await {
            Ok(_) => Vec::new(),
            Err(refusal) => codes(&refusal).iter().map(|(_, code)| (*code).to_owned()).collect::<Vec<_>>(),
        }
    };
    let named = Terms { gpu_uuids: vec!["GPU-of-which-nothing-is-known".into()], ..Terms::default() };
    assert_eq!(codes_of(8, Terms::default()).await, [""; 0], "the other one may be cut into seven");
    assert_eq!(codes_of(9, Terms::default()).await, ["too-many-gpus"]);
    assert_eq!(codes_of(1, named.clone()).await, [""; 0], "it may be the other one");
    assert_eq!(codes_of(0, named).await, ["no-gpus"]);
}

#[tokio::test]
async fn what_a_submission_and_its_profile_give_a_program_together_has_a_limit() {
    let of = |bytes: usize| Draft {
        profile: Some("training".into()),
        env: BTreeMap::from([("C".into(), EnvValue::Plain("c".repeat(bytes)))]),
        ..Draft::new(JobId::new())
    };
    // That one variable is too long is told before, where the submission is read.
    let refusal = refused(&[], of(1 << 20)).await;
    assert_eq!(codes(&refusal), [("taxiway", "too-long")]);
    admitted(&[], of((1 << 20) - 200)).await;
}

#[tokio::test]
async fn retries_have_a_range() {
    let retries = Retries { max: 1001, backoff: Duration::from_secs(3601), ..Retries::default() };
    let refusal = refused(&[], Draft { terms: Terms { retries, ..Terms::default() }, ..draft() }).await;
    let codes: Vec<&str> = codes(&refusal).iter().map(|(_, code)| *code).collect();
    assert_eq!(codes, ["too-many-retries", "backoff-out-of-range"]);
}
