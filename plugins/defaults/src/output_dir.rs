//! The output directory of a job, from a template.

use taxiway_plugin::{HookError, Job};

/// What a template may name.
pub const PLACEHOLDERS: [&str; 5] = ["job_id", "name", "profile", "external_id", "job_dir"];

/// A piece of a template.
#[derive(Debug, PartialEq, Eq)]
enum Piece<'a> {
    Text(&'a str),
    Placeholder(&'a str),
}

/// A brace without its partner is text: it may be part of a directory's name.
fn pieces(template: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    let mut rest = template;
    while let Some(open) = rest.find('{') {
        let Some(length) = rest[open..].find('}') else { break };
        let (before, from) = rest.split_at(open);
        pieces.push(Piece::Text(before));
        pieces.push(Piece::Placeholder(&from[1..length]));
        rest = &from[length + 1..];
    }
    pieces.push(Piece::Text(rest));
    pieces
}

/// The placeholders of a template that do not exist.
pub fn unknown(template: &str) -> Vec<&str> {
    pieces(template)
        .into_iter()
        .filter_map(|piece| match piece {
            Piece::Placeholder(name) if !PLACEHOLDERS.contains(&name) => Some(name),
            _ => None,
        })
        .collect()
}

/// Fills a template in. What a user chose becomes one component of a path, never a path.
pub fn expand(template: &str, job: &Job) -> Result<String, HookError> {
    let mut path = String::new();
    for piece in pieces(template) {
        match piece {
            Piece::Text(text) => path.push_str(text),
            Piece::Placeholder("job_id") => path.push_str(&component(&job.id, "no-id")),
            Piece::Placeholder("name") => path.push_str(&component(&job.name, "no-name")),
            Piece::Placeholder("profile") => path.push_str(&component(job.profile().unwrap_or_default(), "no-profile")),
            Piece::Placeholder("external_id") => {
                path.push_str(&component(job.external_id().unwrap_or(&job.id), "no-id"));
            }
            Piece::Placeholder("job_dir") => {
                let job_dir = job.detail("job_dir").and_then(|value| value.as_str());
                path.push_str(job_dir.ok_or_else(|| {
                    HookError::permanent(
                        "no-job-dir",
                        "the server does not say where the job's directory is: `output_dir` cannot use {job_dir}",
                    )
                })?);
            }
            Piece::Placeholder(unknown) => {
                return Err(HookError::permanent(
                    "unknown-placeholder",
                    format!("`output_dir` names {{{unknown}}}, which does not exist"),
                ));
            }
        }
    }
    Ok(path)
}

/// One component of a path: letters, digits, `.`, `_` and `-`, at most 100 characters (a file name ends at 255 bytes).
/// A dot in front would hide it, or climb.
fn component(text: &str, absent: &str) -> String {
    let kept = |c: char| if c.is_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' };
    let name: String = text.chars().take(100).map(kept).collect();
    match name {
        name if name.is_empty() => absent.to_owned(),
        name if name.starts_with('.') => name.replacen('.', "-", 1),
        name => name,
    }
}

#[cfg(test)]
mod tests {
    use taxiway_plugin::json;

    use super::*;

    fn job() -> Job {
        Job::new("0193-ab", json!({})).named("run 7/α").with_details(json!({
            "profile": "lora", "external_id": "../../etc", "job_dir": "/var/lib/taxiway/jobs/0193-ab",
        }))
    }

    #[test]
    fn every_placeholder_is_filled_in() {
        let expanded = expand("{job_dir}/out/{profile}/{name}/{job_id}", &job()).expect("all are known");
        assert_eq!(expanded, "/var/lib/taxiway/jobs/0193-ab/out/lora/run-7-α/0193-ab");
    }

    #[test]
    fn what_a_user_chose_cannot_climb_out_of_the_directory() {
        assert_eq!(expand("/out/{external_id}", &job()), Ok("/out/-.-..-etc".to_owned()));
        let hidden = job().named("..");
        assert_eq!(expand("/out/{name}", &hidden), Ok("/out/-.".to_owned()));
    }

    #[test]
    fn what_a_job_does_not_have_is_named_or_replaced_by_its_id() {
        let bare = Job::new("0193", json!({}));
        assert_eq!(expand("{external_id}_{profile}_{name}", &bare), Ok("0193_no-profile_no-name".to_owned()));
        assert_eq!(expand("{job_dir}", &bare).map_err(|error| error.code), Err("no-job-dir".to_owned()));
    }

    #[test]
    fn unknown_placeholders_are_found_and_lone_braces_are_text() {
        assert_eq!(unknown("/a/{job_id}/{jobid}/{}/{x"), ["jobid", ""]);
        assert_eq!(expand("/a/}{x", &job()), Ok("/a/}{x".to_owned()));
    }
}
