use taxiway_plugin::testing::Host;

use super::*;

fn schema() -> Value {
    json!({
        "type": "object",
        "required": ["model", "train"],
        "additionalProperties": false,
        "properties": {
            "model": {"type": "string", "description": "path of the base model"},
            "train": {"$ref": "#/$defs/train"},
            "optimizer": {"enum": ["adamw", "sgd"]},
        },
        "$defs": {"train": {
            "type": "object",
            "additionalProperties": false,
            "properties": {
                "batch_size": {"type": "integer", "minimum": 1, "maximum": 512, "description": "examples per step"},
                "learning_rate": {"type": "number", "exclusiveMinimum": 0},
            },
        }},
    })
}

fn judge_as(profile: Option<&str>, settings: Value, config: Value) -> Result<Problems, ValidateError> {
    let job = Job::new("1", config).with_details(json!({"profile": profile}));
    Host::new().settings(settings).run(|| ConfigSchema::validate(&job, &Context::submission()))
}

fn judge(config: Value) -> Problems {
    judge_as(None, json!({"schema": schema()}), config).expect("it can judge")
}

/// Path and code of each problem, sorted.
fn found(problems: &Problems) -> Vec<(&str, &str)> {
    let mut found: Vec<_> = problems.iter().map(|problem| (problem.path.as_str(), problem.code.as_str())).collect();
    found.sort_unstable();
    found
}

#[test]
fn a_configuration_that_fits_has_no_problems() {
    assert_eq!(judge(json!({"model": "m", "train": {"batch_size": 8, "learning_rate": 1e-4}})), Problems::new());
}

#[test]
fn every_violation_is_reported_at_its_place() {
    let problems = judge(json!({
        "train": {"batch_size": 4096, "learning_rate": 0, "batchsize": 1},
        "optimizer": "adam",
        "epochs": 3,
    }));
    assert_eq!(
        found(&problems),
        [
            ("/epochs", "unknown-key"),
            ("/model", "missing-key"),
            ("/optimizer", "value-not-allowed"),
            ("/train/batch_size", "too-large"),
            ("/train/batchsize", "unknown-key"),
            ("/train/learning_rate", "too-small"),
        ]
    );
    let at = |path: &str| problems.iter().find(|problem| problem.path == path).expect("a problem there");
    assert_eq!(at("/train/batch_size").message, "`batch_size` must be at most 512, but is 4096");
    assert_eq!(at("/train/batch_size").help.as_deref(), Some("examples per step"));
    assert_eq!(at("/train/batchsize").help.as_deref(), Some("did you mean `batch_size`?"));
    assert_eq!(at("/epochs").help.as_deref(), Some("known keys: `model`, `train`, `optimizer`"));
    assert_eq!(at("/model").help.as_deref(), Some("path of the base model"));
    assert_eq!(at("/optimizer").message, r#"`optimizer` must be one of "adamw", "sgd", but is "adam""#);
}

#[test]
fn a_wrong_type_names_both_types() {
    let problems = judge(json!({"model": 3, "train": {"batch_size": "8"}}));
    assert_eq!(found(&problems), [("/model", "wrong-type"), ("/train/batch_size", "wrong-type")]);
    let messages: Vec<_> = problems.iter().map(|problem| problem.message.as_str()).collect();
    assert!(messages.contains(&r#"`batch_size` must be an integer, but is "8""#), "{messages:?}");
}

#[test]
fn keys_with_slashes_and_tildes_are_escaped() {
    let settings = json!({"schema": {"required": ["a/b~c"], "additionalProperties": {"type": "integer"}}});
    let problems = judge_as(None, settings, json!({"x/y": "z"})).expect("it can judge");
    assert_eq!(found(&problems), [("/a~1b~0c", "missing-key"), ("/x~1y", "wrong-type")]);
    assert!(problems.iter().any(|problem| problem.message.starts_with("`x/y`")));
}

#[test]
fn an_alternative_that_nearly_fits_is_named() {
    let settings = json!({"schema": {"properties": {"lr": {"oneOf": [
        {"type": "number"},
        {"type": "object", "required": ["warmup", "peak"]},
    ]}}}});
    let problems = judge_as(None, settings, json!({"lr": "auto"})).expect("it can judge");
    assert_eq!(found(&problems), [("/lr", "no-alternative-fits")]);
    let help = problems.iter().next().and_then(|problem| problem.help.as_deref()).unwrap_or_default();
    assert!(help.contains(r#"must be a number, but is "auto""#), "{help}");
}

#[test]
fn a_profile_has_its_own_schema_and_others_the_default() {
    let settings = json!({"schema": {"required": ["a"]}, "profiles": {"lora": r#"{"required": ["b"]}"#}});
    let judged = |profile| judge_as(profile, settings.clone(), json!({})).expect("it can judge");
    assert_eq!(found(&judged(Some("lora"))), [("/b", "missing-key")]);
    assert_eq!(found(&judged(Some("full"))), [("/a", "missing-key")]);
    assert_eq!(found(&judged(None)), [("/a", "missing-key")]);
}

#[test]
fn without_a_schema_everything_may_run() {
    assert_eq!(judge_as(Some("lora"), json!({}), json!({"x": 1})), Ok(Problems::new()));
}

#[test]
fn a_broken_schema_keeps_the_plugin_from_loading_and_is_named() {
    for (settings, path) in [
        (json!({"schema": {"type": "strnig"}}), "/schema/type"),
        (json!({"profiles": {"lora": {"properties": {"a": {"minimum": "1"}}}}}), "/profiles/lora/properties/a/minimum"),
        (json!({"profiles": {"lora": "{"}}), "/profiles/lora"),
        (json!({"schema": {"$ref": "https://example.org/schema.json"}}), "/schema"),
        (json!({"schema": {"properties": {"a": {"pattern": "("}}}}), "/schema/properties/a/pattern"),
    ] {
        let problems = ConfigSchema::check_settings(&settings);
        assert!(problems.refuses(), "{settings}");
        assert_eq!(found(&problems), [(path, "broken-schema")], "{problems:?}");
    }
}

#[test]
fn an_unknown_setting_is_refused() {
    assert!(ConfigSchema::check_settings(&json!({"shema": {}})).refuses());
}

#[test]
fn schemas_that_compile_load() {
    assert_eq!(ConfigSchema::check_settings(&json!({"schema": schema()})), Problems::new());
}
