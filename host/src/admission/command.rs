//! Placeholders in a command: `{config_file}`, `{job_id}`, `{external_id}`, `{job_dir}`, `{attempt}`.
//!
//! Anything else in braces is the command's own and is passed on as it is: training programs have patterns such as
//! `{epoch}-{val_loss:.2f}` of their own.

/// What a command may contain. The launcher puts their values in when it starts the job.
pub(super) const PLACEHOLDERS: [&str; 5] = ["config_file", "job_id", "external_id", "job_dir", "attempt"];

/// The names in braces that are no placeholders, each with the placeholder that it was likely meant to be.
pub(super) fn unknown(argument: &str) -> impl Iterator<Item = (&str, Option<&'static str>)> {
    argument
        .match_indices('{')
        .filter_map(|(at, _)| leading_name(&argument[at..]))
        .filter(|name| !PLACEHOLDERS.contains(name))
        .map(|name| (name, likely(name)))
}

/// The placeholder that differs from `name` in less than a third of its letters.
fn likely(name: &str) -> Option<&'static str> {
    PLACEHOLDERS
        .into_iter()
        .map(|placeholder| {
            (strsim::damerau_levenshtein(&name.to_ascii_lowercase().replace('-', "_"), placeholder), placeholder)
        })
        .filter(|(distance, placeholder)| *distance <= placeholder.len() / 3)
        .min()
        .map(|(_, placeholder)| placeholder)
}

/// The name when the text starts with `{name}`.
fn leading_name(text: &str) -> Option<&str> {
    let (name, _) = text.strip_prefix('{')?.split_once('}')?;
    let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-');
    is_name.then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_placeholder_is_told_from_a_pattern_of_the_program() {
        let found: Vec<_> =
            unknown("{confg_file} {epoch} {job-id} {{jobdir} {step} {x:.2f} {job_id} {\"attemp\": {").collect();
        assert_eq!(
            found,
            [
                ("confg_file", Some("config_file")),
                ("epoch", None),
                ("job-id", Some("job_id")),
                ("jobdir", Some("job_dir")),
                ("step", None)
            ]
        );
    }
}
