//! Fuzz targets for everything that reads what a stranger wrote. As plain tests they run over the seed corpus
//! (`src/__fuzz__`) and a bounded number of random inputs; `cargo bolero test TARGET` runs one for as long as you like.

use crate::grant::address::{Network, not_public};
use crate::grant::host::{AllowedHost, Scheme, normal_host};
use crate::grant::variable::AllowedVariable;
use crate::manifest::{Manifest, settings_as_json};
use crate::secret::{SHORTEST, Secrets};
use crate::{patch, problem, quantity, text};
use serde_json::Value;

/// Enough to meet the shallow mistakes, quick enough for every run of the tests.
const INPUTS: usize = 20_000;

/// Hands the target texts that are made of these words as often as of other characters: a random text of characters
/// alone would hardly ever get past the first of them. A seed is also taken as it is. A macro, because bolero finds a
/// target's corpus by the function that it stands in.
macro_rules! for_texts {
    ($words:expr, $check:expr) => {
        bolero::check!().with_iterations(INPUTS).for_each(|input: &[u8]| {
            for text in texts(input, $words) {
                ($check)(text.as_str());
            }
        })
    };
}

fn texts(input: &[u8], words: &[&str]) -> [String; 3] {
    let word = |byte: u8| words[usize::from(byte) % words.len()];
    let mut mixed = String::new();
    for byte in input {
        match byte {
            0x80.. => mixed.push_str(word(byte - 0x80)),
            byte => mixed.push(char::from(*byte)),
        }
    }
    [String::from_utf8_lossy(input).into_owned(), mixed, input.iter().map(|byte| word(*byte)).collect()]
}

const TOML: &[&str] = &[
    "enabled",
    "order",
    "stages",
    "profiles",
    "mode",
    "on_error",
    "timeout",
    "memory",
    "sha256",
    "component",
    "bundled",
    "http",
    "allow_private",
    "read",
    "env",
    "[settings]",
    "[secrets]",
    "=",
    "=",
    "=",
    "\n",
    "\n",
    "\n",
    "\"",
    "\"",
    "[",
    "]",
    "{",
    "}",
    ",",
    ".",
    "true",
    "1",
    "\"2s\"",
    "\"https://a.b\"",
    "\"10.0.0.0/8\"",
    "\"NCCL_*\"",
    "\"/data\"",
    "'",
    "\\",
    "ü",
];
const URL: &[&str] = &[
    "http://",
    "https://",
    "HTTPS://",
    ":",
    "/",
    "@",
    ".",
    "[",
    "]",
    "::",
    "::1",
    "ffff:",
    "127.0.0.1",
    "169.254.169.254",
    "localhost",
    "example",
    "com",
    "443",
    "80",
    "0",
    "99999",
    "*",
    "-",
    "_",
    "xn--",
    "ü",
    "%",
    "?",
    "#",
    "/8",
    "/128",
    "LD_",
    "TAXIWAY_",
    "CUDA_",
    "ms",
    "h",
    "KiB",
];
const JSON: &[&str] = &[
    "{", "}", "[", "]", "\"a\"", "\"b\"", ":", ":", ",", ",", "1", "null", "true", "\n", "/", "/a", "/b", "~0", "~1",
    "~", "-", "0", "\u{202e}", "\"\"",
];

#[test]
fn the_manifest_parser_never_panics_and_errors_name_a_line() {
    for_texts!(TOML, |text: &str| match Manifest::parse(text) {
        Ok(manifest) => assert!(settings_as_json(&manifest.settings).is_object()),
        Err(error) => {
            assert!(error.line >= 1 && error.line <= text.matches('\n').count() + 1 && !error.message.is_empty())
        }
    });
}

#[test]
fn a_granted_host_allows_itself_and_no_other_spelling_of_another() {
    for_texts!(URL, |text: &str| {
        let Ok(grant) = text.parse::<AllowedHost>() else { return };
        let shown = grant.to_string();
        assert_eq!(shown.parse::<AllowedHost>().as_ref(), Ok(&grant), "{shown}");
        assert!(!grant.allows(Scheme::Https, "169.254.169.254", 443) || text.contains("169.254.169.254"));
    });
}

#[test]
fn a_normal_host_stays_as_it_is() {
    for_texts!(URL, |text: &str| {
        let Some(host) = normal_host(text) else { return };
        let again = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        assert_eq!(normal_host(&again).as_deref(), Some(host.as_str()));
        assert!(!host.contains(['/', '@', '\\', '?', '#', ' ', '%']));
    });
}

#[test]
fn an_address_in_disguise_is_judged_as_what_it_is() {
    bolero::check!().with_iterations(INPUTS).with_type::<u32>().for_each(|bits| {
        let v4 = std::net::Ipv4Addr::from_bits(*bits);
        let mapped = std::net::IpAddr::V6(v4.to_ipv6_mapped());
        assert_eq!(not_public(v4.into()), not_public(mapped));
        let compatible = std::net::Ipv6Addr::from_bits(u128::from(*bits));
        assert!(not_public(compatible.into()).is_some(), "{compatible}");
        let translated = std::net::Ipv6Addr::from_bits(0x0064_ff9b_u128 << 96 | u128::from(*bits));
        assert!(not_public(translated.into()).is_some(), "{translated}");
    });
}

#[test]
fn networks_variables_and_quantities_never_panic() {
    for_texts!(URL, |text: &str| {
        if let Ok(network) = text.parse::<Network>() {
            assert_eq!(network.to_string().parse::<Network>(), Ok(network));
        }
        if let Ok(variable) = text.parse::<AllowedVariable>() {
            assert!(!variable.allows("LD_PRELOAD") && !variable.allows("TAXIWAY_JOB_ID"));
        }
        let _ = (quantity::parse_duration(text), quantity::parse_size(text));
    });
}

#[test]
fn a_path_that_passes_can_be_followed() {
    for_texts!(JSON, |text: &str| {
        // The first line is the pointer, the rest the document.
        let (pointer, document) = text.split_once('\n').unwrap_or((text, "{\"a\": {\"b\": [1]}}"));
        let Ok(document) = serde_json::from_str::<Value>(document) else { return };
        if problem::points_into(&document, pointer) {
            assert!(pointer.is_empty() || pointer.starts_with('/'));
            assert!(!pointer.chars().any(char::is_control));
            let parent = pointer.rsplit_once('/').map_or("", |(parent, _)| parent);
            assert!(document.pointer(parent).is_some());
        }
    });
}

#[test]
fn a_patch_always_leads_from_the_old_to_the_new() {
    for_texts!(JSON, |text: &str| {
        // Two documents, one a line.
        let Some((old, new)) = text.split_once('\n') else { return };
        let (Ok(old), Ok(new)) = (serde_json::from_str::<Value>(old), serde_json::from_str::<Value>(new)) else {
            return;
        };
        leads(&old, &new);
    });
}

#[test]
fn a_patch_between_random_documents_leads_from_one_to_the_other() {
    bolero::check!().with_iterations(INPUTS).with_type::<(Vec<u8>, Vec<u8>)>().for_each(|(old, new)| {
        leads(&document(&mut old.iter().copied(), 0), &document(&mut new.iter().copied(), 0));
    });
}

fn leads(old: &Value, new: &Value) {
    let patch: json_patch::Patch = serde_json::from_value(patch::between(old, new)).expect("an RFC 6902 patch");
    let mut applied = old.clone();
    json_patch::patch(&mut applied, &patch).expect("it applies");
    assert_eq!(applied, *new);
}

/// A document that these bytes describe, with keys that collide often and need escapes.
fn document(bytes: &mut impl Iterator<Item = u8>, depth: u8) -> Value {
    const KEYS: [&str; 5] = ["a", "b", "a/b", "~", ""];
    let next = bytes.next().unwrap_or(0);
    let size = usize::from(next >> 4) % 4;
    match next % 6 {
        0 => Value::Null,
        1 => Value::from(next),
        2 => Value::from("text"),
        3 => Value::from(next > 100),
        _ if depth > 4 => Value::Null,
        4 => Value::Array((0..size).map(|_| document(bytes, depth + 1)).collect()),
        _ => {
            let key = |bytes: &mut dyn Iterator<Item = u8>| {
                KEYS[usize::from(bytes.next().unwrap_or(0)) % KEYS.len()].to_owned()
            };
            Value::Object((0..size).map(|_| (key(bytes), document(bytes, depth + 1))).collect())
        }
    }
}

#[test]
fn cleaned_text_is_short_and_holds_no_control_characters() {
    for_texts!(JSON, |text: &str| {
        let clean = text::clean(text, 50);
        assert!(clean.len() <= 50 && !clean.chars().any(char::is_control));
        assert!(!text::clean_code(text).is_empty());
    });
}

#[test]
fn a_redacted_text_holds_no_secret() {
    for_texts!(JSON, |text: &str| {
        let (secret, text) = text.split_once('\n').unwrap_or(("hunter2", text));
        let Ok(secrets) = Secrets::new(vec![("S".to_owned(), secret.to_owned())]) else {
            assert!(secret.len() < SHORTEST);
            return;
        };
        let redacted = secrets.redact_cut(text);
        // What stands for a secret may itself be part of one.
        assert!(
            !secrets.found_in(&redacted)
                || "[redacted]".contains(secret)
                || secret.contains("[redacted]")
                || redacted.contains("[redacted]")
        );
    });
}
