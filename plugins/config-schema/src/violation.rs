//! A violation as a person reads it, with a code that stays the same.

use jsonschema::{
    JsonType, ValidationError,
    error::{TypeKind, ValidationErrorKind as Kind},
};
use taxiway_plugin::{Problems, Value, pointer};

/// A value in a message is cut at this many characters: a configuration may hold whole data sets.
const VALUE_CHARS: usize = 80;

/// How unlike a known key may be to still be what its author meant (Jaro–Winkler; transposed letters score 0.9).
const ALIKE: f64 = 0.84;

/// Puts a violation into words. One that names several keys becomes a problem for each.
pub fn describe(schema: &Value, error: &ValidationError<'_>, problems: &mut Problems) {
    let path = error.instance_path().as_str();
    let instance = error.instance().as_ref();
    match error.kind() {
        Kind::Required { property } => {
            let key = property.as_str().unwrap_or_default();
            let problem = problems.error(pointer::join(path, key), code(error.kind()), format!("`{key}` is missing"));
            let part = enclosing(schema, error).and_then(|part| part.get("properties")?.get(key));
            if let Some(description) = part.and_then(described) {
                problem.help(description);
            }
        }
        Kind::AdditionalProperties { unexpected } | Kind::UnevaluatedProperties { unexpected } => {
            let known = known_keys(schema, error);
            for key in unexpected {
                let problem =
                    problems.error(pointer::join(path, key), code(error.kind()), format!("`{key}` is not known here"));
                if let Some(help) = known_key_help(key, &known) {
                    problem.help(help);
                }
            }
        }
        kind => {
            let name = path.rsplit('/').next().filter(|name| !name.is_empty());
            let subject = name.map_or_else(|| "the configuration".to_owned(), |name| format!("`{}`", unescape(name)));
            let problem = problems.error(path, code(kind), message(&subject, kind, instance, error));
            let nearest = match kind {
                Kind::AnyOf { context } | Kind::OneOfNotValid { context } => nearest_alternative(context),
                _ => None,
            };
            let description = || enclosing(schema, error).and_then(described).map(str::to_owned);
            if let Some(help) = nearest.or_else(description) {
                problem.help(help);
            }
        }
    }
}

/// The codes are part of this plugin's interface: scripts tell violations apart by them.
fn code(kind: &Kind) -> &'static str {
    match kind {
        Kind::Required { .. } => "missing-key",
        Kind::AdditionalProperties { .. } | Kind::UnevaluatedProperties { .. } => "unknown-key",
        Kind::PropertyNames { .. } => "wrong-key-name",
        Kind::MaxProperties { .. } => "too-many-keys",
        Kind::MinProperties { .. } => "too-few-keys",
        Kind::Type { .. } => "wrong-type",
        Kind::Constant { .. } | Kind::Enum { .. } => "value-not-allowed",
        Kind::Maximum { .. } | Kind::ExclusiveMaximum { .. } => "too-large",
        Kind::Minimum { .. } | Kind::ExclusiveMinimum { .. } => "too-small",
        Kind::MultipleOf { .. } => "not-a-multiple",
        Kind::MaxLength { .. } => "too-long",
        Kind::MinLength { .. } => "too-short",
        Kind::Pattern { .. } => "pattern-mismatch",
        Kind::Format { .. } => "wrong-format",
        Kind::ContentEncoding { .. } | Kind::ContentMediaType { .. } | Kind::FromUtf8 { .. } => "wrong-encoding",
        Kind::AdditionalItems { .. } | Kind::UnevaluatedItems { .. } | Kind::MaxItems { .. } => "too-many-items",
        Kind::MinItems { .. } => "too-few-items",
        Kind::UniqueItems => "duplicate-items",
        Kind::Contains => "item-missing",
        Kind::AnyOf { .. } | Kind::OneOfNotValid { .. } => "no-alternative-fits",
        Kind::OneOfMultipleValid { .. } => "several-alternatives-fit",
        Kind::Not { .. } | Kind::FalseSchema => "not-allowed",
        Kind::BacktrackLimitExceeded { .. } | Kind::RegexEngineFailure { .. } => "pattern-too-costly",
        Kind::Referencing(_) => "broken-reference",
        Kind::Custom { .. } => "schema-violation",
    }
}

fn message(subject: &str, kind: &Kind, instance: &Value, error: &ValidationError<'_>) -> String {
    let is = show(instance);
    match kind {
        Kind::Type { kind } => format!("{subject} must be {}, but is {is}", types(kind)),
        Kind::Constant { expected_value } => format!("{subject} must be {}, but is {is}", show(expected_value)),
        Kind::Enum { options } => format!("{subject} must be one of {}, but is {is}", list(options)),
        Kind::Maximum { limit } => format!("{subject} must be at most {limit}, but is {is}"),
        Kind::ExclusiveMaximum { limit } => format!("{subject} must be less than {limit}, but is {is}"),
        Kind::Minimum { limit } => format!("{subject} must be at least {limit}, but is {is}"),
        Kind::ExclusiveMinimum { limit } => format!("{subject} must be more than {limit}, but is {is}"),
        Kind::MultipleOf { multiple_of } => format!("{subject} must be a multiple of {multiple_of}, but is {is}"),
        Kind::MaxLength { limit } => format!("{subject} must have at most {limit} characters, but is {is}"),
        Kind::MinLength { limit } => format!("{subject} must have at least {limit} characters, but is {is}"),
        Kind::Pattern { pattern } => format!("{subject} must match the pattern `{pattern}`, but is {is}"),
        Kind::Format { format } => format!("{subject} must be in the format `{format}`, but is {is}"),
        Kind::MaxItems { limit } => format!("{subject} must have at most {limit} items, but has {}", count(instance)),
        Kind::MinItems { limit } => format!("{subject} must have at least {limit} items, but has {}", count(instance)),
        Kind::AdditionalItems { limit } => {
            format!("{subject} must have at most {limit} items, but has {}", count(instance))
        }
        Kind::UnevaluatedItems { .. } => format!("{subject} has items that are not allowed"),
        Kind::MaxProperties { limit } => {
            format!("{subject} must have at most {limit} keys, but has {}", count(instance))
        }
        Kind::MinProperties { limit } => {
            format!("{subject} must have at least {limit} keys, but has {}", count(instance))
        }
        Kind::PropertyNames { error } => format!("{subject} has a key that is not allowed: {error}"),
        Kind::UniqueItems => format!("{subject} must not have the same item twice"),
        Kind::Contains => format!("{subject} lacks an item that it must have"),
        Kind::AnyOf { context } | Kind::OneOfNotValid { context } => {
            format!("{subject} fits none of the {} allowed alternatives", context.len())
        }
        Kind::OneOfMultipleValid { .. } => {
            format!("{subject} fits more than one alternative, and exactly one is allowed")
        }
        Kind::Not { .. } => format!("{subject} has a form that is not allowed"),
        Kind::FalseSchema => format!("{subject} is not allowed here"),
        Kind::BacktrackLimitExceeded { .. } | Kind::RegexEngineFailure { .. } => {
            format!("{subject} could not be checked against its pattern: it is too costly")
        }
        _ => format!("{subject}: {error}"),
    }
}

/// What is wrong with the alternative that is least wrong.
fn nearest_alternative(alternatives: &[Vec<ValidationError<'static>>]) -> Option<String> {
    let nearest = alternatives.iter().filter(|errors| !errors.is_empty()).min_by_key(|errors| errors.len())?;
    let wrong: Vec<String> = nearest
        .iter()
        .take(3)
        .map(|error| {
            let path = error.instance_path().as_str();
            let place = if path.is_empty() { "here" } else { path };
            match error.kind() {
                Kind::Required { property } => format!("{place} lacks {property}"),
                kind => message(place, kind, error.instance(), error),
            }
        })
        .collect();
    Some(format!("the closest one asks: {}", wrong.join("; ")))
}

/// The part of the schema whose keyword was violated. The schema's path does not go through `$ref`.
fn enclosing<'a>(schema: &'a Value, error: &ValidationError<'_>) -> Option<&'a Value> {
    let (parent, _keyword) = error.schema_path().as_str().rsplit_once('/')?;
    schema.pointer(parent)
}

fn described(part: &Value) -> Option<&str> {
    part.get("description")?.as_str().filter(|text| !text.is_empty())
}

fn known_keys<'a>(schema: &'a Value, error: &ValidationError<'_>) -> Vec<&'a str> {
    let properties = enclosing(schema, error).and_then(|part| part.get("properties")?.as_object());
    properties.into_iter().flat_map(|properties| properties.keys().map(String::as_str)).collect()
}

fn known_key_help(key: &str, known: &[&str]) -> Option<String> {
    let score = |candidate: &str| strsim::jaro_winkler(&key.to_lowercase(), &candidate.to_lowercase());
    let nearest = known
        .iter()
        .map(|candidate| (score(candidate), *candidate))
        .filter(|(score, _)| *score >= ALIKE)
        .max_by(|(one, _), (other, _)| one.total_cmp(other));
    match nearest {
        Some((_, candidate)) => Some(format!("did you mean `{candidate}`?")),
        None if known.is_empty() => None,
        None => {
            let names: Vec<String> = known.iter().map(|name| format!("`{name}`")).collect();
            Some(format!("known keys: {}", names.join(", ")))
        }
    }
}

fn types(kind: &TypeKind) -> String {
    match kind {
        TypeKind::Single(one) => type_name(*one).to_owned(),
        TypeKind::Multiple(set) => set.iter().map(type_name).collect::<Vec<_>>().join(" or "),
    }
}

fn type_name(name: JsonType) -> &'static str {
    match name {
        JsonType::Array => "an array",
        JsonType::Boolean => "true or false",
        JsonType::Integer => "an integer",
        JsonType::Null => "null",
        JsonType::Number => "a number",
        JsonType::Object => "an object",
        JsonType::String => "a string",
    }
}

fn count(instance: &Value) -> usize {
    match instance {
        Value::Array(items) => items.len(),
        Value::Object(keys) => keys.len(),
        _ => 0,
    }
}

fn list(options: &Value) -> String {
    let Value::Array(options) = options else { return show(options) };
    options.iter().map(show).collect::<Vec<_>>().join(", ")
}

/// A value as JSON, or what kind of thing it is where that would be too long to read.
fn show(value: &Value) -> String {
    match value {
        Value::Object(keys) if !keys.is_empty() => format!("an object of {} keys", keys.len()),
        Value::Array(items) if !items.is_empty() => format!("an array of {} items", items.len()),
        value => {
            let text = value.to_string();
            match text.char_indices().nth(VALUE_CHARS) {
                Some((end, _)) => format!("{}…", &text[..end]),
                None => text,
            }
        }
    }
}

fn unescape(key: &str) -> String {
    key.replace("~1", "/").replace("~0", "~")
}
