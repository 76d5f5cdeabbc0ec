//! Reading `taxiway.toml` and the variables over it, with faults that point at the place.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{Deserializer, Visitor};
use taxiway_plugin_host::Limits;
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use super::sections::{
    Config, GpuSection, LauncherSection, PluginsSection, Profile, ProfileDefaults, QueueSection, Retention,
    ServerSection,
};

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {}: {source}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Something in the file or the environment is wrong; all of it that was found.
    #[error("the configuration is not usable:{}", list(.0))]
    Faults(Vec<Fault>),
}

fn list(faults: &[Fault]) -> String {
    faults.iter().map(|fault| format!("\n  {fault}")).collect()
}

/// One thing that is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// `FILE:LINE`, or the variable's name.
    pub place: String,
    /// What is wrong and what to do about it.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

/// The process's variables that set keys: those named `TAXIWAY_SECTION__KEY`.
#[must_use]
pub fn environment() -> Vec<(String, String)> {
    let mut variables: Vec<_> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    variables.retain(|(name, _)| name.starts_with("TAXIWAY_") && name.contains("__"));
    variables.sort();
    variables
}

/// Reads the file, if there is one, and `variables` over it.
///
/// # Errors
/// When the file cannot be read, or when anything in it or in the variables is wrong.
pub fn read(file: Option<&Path>, variables: &[(String, String)]) -> Result<Config, ConfigError> {
    let text = match file {
        Some(path) => {
            std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?
        }
        None => String::new(),
    };
    let name = file.map_or_else(|| "taxiway.toml".to_owned(), |path| path.display().to_string());
    parse(&text, &name, variables)
}

/// The configuration that `text`, called `name` in faults, and `variables` over it say.
///
/// # Errors
/// [`ConfigError::Faults`], with all that was found.
pub fn parse(text: &str, name: &str, variables: &[(String, String)]) -> Result<Config, ConfigError> {
    let at = |offset: usize, message: String| Fault { place: format!("{name}:{}", line_of(text, offset)), message };
    let document = DeTable::parse(text).map_err(|error| {
        ConfigError::Faults(vec![at(error.span().map_or(0, |span| span.start), error.message().to_owned())])
    })?;
    let mut faults = Vec::new();
    unknown_keys(document.get_ref(), &mut Vec::new(), &mut |offset, message| faults.push(at(offset, message)));
    let mut config = Config::default();
    if faults.is_empty() {
        // Read on its own first, so that what fails here has a line in the file.
        match toml::from_str::<Config>(text) {
            Ok(read) => config = read,
            Err(error) => {
                let offset = error.span().map_or(0, |span| span.start);
                faults.push(at(offset, error.message().to_owned()));
            }
        }
    }
    let mut table: Table = if faults.is_empty() { toml::from_str(text).unwrap_or_default() } else { Table::new() };
    for (variable, value) in variables {
        // One at a time: the variable after which the whole cannot be read is the wrong one.
        match set(&table, variable, value) {
            Ok((read, with_it)) => (config, table) = (read, with_it),
            Err(message) => faults.push(Fault { place: variable.clone(), message }),
        }
    }
    for (path, message) in config.faults() {
        let place = offset_of(document.get_ref(), &path)
            .map_or_else(|| path.join("."), |offset| format!("{name}:{}", line_of(text, offset)));
        faults.push(Fault { place, message });
    }
    if faults.is_empty() { Ok(config) } else { Err(ConfigError::Faults(faults)) }
}

/// The known name that is most like `wrong`, when one is like it at all.
#[must_use]
pub fn nearest<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|name| (strsim::jaro_winkler(wrong, name), name))
        // 0.7: below it the suggestion was noise in trials with swapped, missing and doubled letters.
        .filter(|(likeness, _)| *likeness >= 0.7)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

/// `table` with the key that `variable` names set to `value`, and the configuration it is then.
fn set(table: &Table, variable: &str, value: &str) -> Result<(Config, Table), String> {
    let path: Vec<String> = variable.trim_start_matches("TAXIWAY_").split("__").map(str::to_ascii_lowercase).collect();
    for depth in 0..path.len() {
        let above: Vec<&str> = path[..depth].iter().map(String::as_str).collect();
        if let Some(known) = known_keys(&above)
            && !known.contains(&path[depth].as_str())
        {
            return Err(unknown(&path[depth], &above, known));
        }
    }
    // `3`, `true` and `["a"]` are TOML; what is not, is text: 127.0.0.1:8294, 30s, /data.
    let parsed = toml::from_str::<Table>(&format!("value = {value}")).ok().and_then(|mut table| {
        let single = table.len() == 1;
        table.remove("value").filter(|_| single)
    });
    let read = |value: Value| {
        let mut table = table.clone();
        put(&mut table, &path, value)?;
        let config = Config::deserialize(Value::Table(table.clone())).map_err(|error| error.message().to_owned())?;
        Ok((config, table))
    };
    let text = Value::String(value.to_owned());
    match parsed {
        // A number may have been meant as text, say a name made of digits.
        Some(parsed) => read(parsed).or_else(|error| read(text).map_err(|_: String| error)),
        None => read(text),
    }
}

fn put(table: &mut Table, path: &[String], value: Value) -> Result<(), String> {
    let Some((last, above)) = path.split_last() else { return Err("names no key".to_owned()) };
    let mut place = table;
    for key in above {
        place = match place.entry(key.clone()).or_insert_with(|| Value::Table(Table::new())) {
            Value::Table(inner) => inner,
            _ => return Err(format!("`{key}` is a value, not a section")),
        };
    }
    place.insert(last.clone(), value);
    Ok(())
}

/// The keys that a table at `path` may have; none where any may be.
fn known_keys(path: &[&str]) -> Option<&'static [&'static str]> {
    match path {
        [] => Some(keys_of::<Config>()),
        ["server"] => Some(keys_of::<ServerSection>()),
        ["queue", "retention"] => Some(keys_of::<Retention>()),
        ["queue"] => Some(keys_of::<QueueSection>()),
        ["gpu"] => Some(keys_of::<GpuSection>()),
        ["launcher"] => Some(keys_of::<LauncherSection>()),
        ["plugins"] => Some(keys_of::<PluginsSection>()),
        ["plugins", "limits"] => Some(keys_of::<Limits>()),
        ["profiles", _] => Some(keys_of::<Profile>()),
        ["profiles", _, "defaults"] => Some(keys_of::<ProfileDefaults>()),
        _ => None,
    }
}

fn unknown_keys(table: &DeTable<'_>, path: &mut Vec<String>, fault: &mut impl FnMut(usize, String)) {
    for (key, value) in table {
        let name: &str = key.get_ref();
        let above: Vec<&str> = path.iter().map(String::as_str).collect();
        if let Some(known) = known_keys(&above)
            && !known.contains(&name)
        {
            fault(key.span().start, unknown(name, &above, known));
            continue;
        }
        if let DeValue::Table(inner) = value.get_ref() {
            path.push(name.to_owned());
            unknown_keys(inner, path, fault);
            path.pop();
        }
    }
}

fn unknown(name: &str, above: &[&str], known: &[&str]) -> String {
    let place = if above.is_empty() { String::new() } else { format!(" in [{}]", above.join(".")) };
    match nearest(name, known.iter().copied()) {
        Some(meant) => format!("unknown key `{name}`{place}; did you mean `{meant}`?"),
        None => format!("unknown key `{name}`{place}; known are {}", known.join(", ")),
    }
}

/// Where the value at `path` begins, or the deepest table above it.
fn offset_of(table: &DeTable<'_>, path: &[&str]) -> Option<usize> {
    let (first, rest) = path.split_first()?;
    let (key, value) = table.iter().find(|(key, _)| key.get_ref() == first)?;
    match value.get_ref() {
        DeValue::Table(inner) => offset_of(inner, rest).or(Some(key.span().start)),
        _ => Some(key.span().start),
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes()[..offset.min(text.len())].iter().filter(|byte| **byte == b'\n').count() + 1
}

/// The names of a struct's fields, as serde knows them: the list that its derive hands to the deserializer.
pub(crate) fn keys_of<T: for<'de> Deserialize<'de>>() -> &'static [&'static str] {
    match T::deserialize(Asking) {
        Err(Fields(fields)) => fields,
        Ok(_) => &[],
    }
}

/// A deserializer that has nothing to give: it ends with the fields that were asked for.
struct Asking;

/// "The error": the fields that were asked for.
#[derive(Debug)]
struct Fields(&'static [&'static str]);

impl fmt::Display for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "asked for {:?}", self.0)
    }
}

impl std::error::Error for Fields {}

impl serde::de::Error for Fields {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self(&[])
    }
}

impl<'de> Deserializer<'de> for Asking {
    type Error = Fields;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Fields> {
        Err(Fields(&[]))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Fields> {
        Err(Fields(fields))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::Startup;

    fn faults(text: &str, variables: &[(&str, &str)]) -> Vec<String> {
        let variables: Vec<_> =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        match parse(text, "taxiway.toml", &variables) {
            Err(ConfigError::Faults(faults)) => faults.iter().map(ToString::to_string).collect(),
            other => panic!("expected faults, got {other:?}"),
        }
    }

    #[test]
    fn an_empty_file_means_the_defaults() {
        assert_eq!(parse("", "taxiway.toml", &[]).expect("defaults"), Config::default());
    }

    #[test]
    fn every_section_is_read() {
        let text = r#"
            [server]
            listen = "127.0.0.1:9000"
            socket_mode = "0660"
            [queue]
            startup = "paused"
            retention = { logs = "2w", logs_size = "1GiB" }
            [gpu]
            use = ["0", "GPU-1"]
            [launcher]
            grace = "1m30s"
            log_max_size = "2GiB"
            [plugins.limits]
            timeout = "500ms"
            [profiles.training]
            command = ["python3", "train.py", "{config_file}"]
            env = { HF_TOKEN = { secret = "s" }, MODE = "fast" }
            defaults = { gpus = 2, time_limit = "2h" }
        "#;
        let config = parse(text, "taxiway.toml", &[]).expect("valid");
        assert_eq!(config.server.listen.port(), 9000);
        assert_eq!(config.server.socket_mode, 0o660);
        assert_eq!(config.queue.startup, Startup::Paused);
        assert_eq!(config.queue.retention.logs, Duration::from_secs(14 * 24 * 3600));
        assert_eq!(
            (config.queue.retention.logs_size, config.queue.retention.jobs.as_secs()),
            (1 << 30, 90 * 24 * 3600)
        );
        assert_eq!(config.gpu.use_, ["0", "GPU-1"]);
        assert_eq!(config.launcher.grace, Duration::from_secs(90));
        assert_eq!(config.launcher.log_max_size, 2 << 30);
        assert_eq!(config.plugins.limits.timeout, Duration::from_millis(500));
        let profile = &config.profiles["training"];
        assert_eq!(profile.defaults.gpus, Some(2));
        assert_eq!(profile.env["HF_TOKEN"].expose(), "s");
    }

    #[test]
    fn unknown_keys_are_named_with_their_lines_and_the_nearest_known_keys_all_at_once() {
        let text = "[server]\nlisen = \"127.0.0.1:1\"\n\n[profiles.a]\ncommand = [\"x\"]\ndefaults = { gpu = 1 }\n[pluggins]\n";
        assert_eq!(
            faults(text, &[]),
            [
                "taxiway.toml:7: unknown key `pluggins`; did you mean `plugins`?",
                "taxiway.toml:6: unknown key `gpu` in [profiles.a.defaults]; did you mean `gpus`?",
                "taxiway.toml:2: unknown key `lisen` in [server]; did you mean `listen`?",
            ]
        );
    }

    #[test]
    fn a_wrong_value_is_named_with_its_line() {
        let found = faults("[launcher]\n# why\ngrace = \"soon\"\n", &[]);
        assert!(found[0].starts_with("taxiway.toml:3: `soon` is not a duration"), "{found:?}");
        let found = faults("[server]\nlisten = \"localhost\"\n", &[]);
        assert!(found[0].starts_with("taxiway.toml:2: `localhost` is not an address with a port"), "{found:?}");
        let found = faults("[server\n", &[]);
        assert!(found[0].starts_with("taxiway.toml:1: "), "{found:?}");
    }

    #[test]
    fn a_profile_without_a_command_is_refused_where_it_stands() {
        let found = faults("[queue]\n\n[profiles.training]\ncwd = \"data\"\n", &[]);
        assert!(found[0].starts_with("taxiway.toml:3: profile `training` has no command"), "{found:?}");
        assert_eq!(found[1], "taxiway.toml:4: must be an absolute path");
    }

    #[test]
    fn what_no_job_of_a_profile_could_be_given_is_refused_where_it_stands() {
        let profile = |env: &str| format!("[profiles.a]\ncommand = [\"x\"]\n[profiles.a.env]\n\n{env}\n");
        // With `TOKEN=` and the NUL.
        let longest = "s".repeat((128 << 10) - 7);
        for write in
            [|value: &str| format!("TOKEN = \"{value}\""), |value: &str| format!("TOKEN = {{ secret = \"{value}\" }}")]
        {
            assert!(parse(&profile(&write(&longest)), "taxiway.toml", &[]).is_ok());
            let found = faults(&profile(&write(&format!("{longest}s"))), &[]);
            assert!(found[0].starts_with("taxiway.toml:5: `TOKEN` has more than the 128 KiB"), "{:.200}", found[0]);
            assert!(found.len() == 1 && !found[0].contains("sss"), "the value is not told");
        }
        for (env, says) in [
            ("TAXIWAY_JOB_ID = \"1\"", "`TAXIWAY_JOB_ID` cannot be set here"),
            ("A = \"a\\u0000b\"", "the value of `A` has a NUL byte"),
            ("A-B = \"c\"", "`A-B` is not a name of an environment variable"),
        ] {
            let found = faults(&profile(env), &[]);
            assert!(found[0].starts_with(&format!("taxiway.toml:5: {says}")), "{found:?}");
        }
        let many: Vec<String> = (0..9).map(|n| format!("A{n} = \"{longest}\"")).collect();
        let found = faults(&profile(&many.join("\n")), &[]);
        assert!(
            found[0].starts_with("taxiway.toml:3: its command and variables have at most 1 MiB"),
            "{:.200}",
            found[0]
        );
        let found = faults(&format!("[profiles.a]\ncommand = [\"x\", \"{longest}1234567\"]\n"), &[]);
        assert!(found[0].starts_with("taxiway.toml:2: an argument has at most 128 KiB"), "{:.200}", found[0]);
    }

    #[test]
    fn variables_win_over_the_file_and_may_be_text_or_toml() {
        let variables = [
            ("TAXIWAY_SERVER__LISTEN".to_owned(), "127.0.0.1:1234".to_owned()),
            ("TAXIWAY_SERVER__ALLOWED_HOSTS".to_owned(), "[\"lab.example\"]".to_owned()),
            ("TAXIWAY_LAUNCHER__GRACE".to_owned(), "5".to_owned()),
            ("TAXIWAY_SERVER__SOCKET_MODE".to_owned(), "0660".to_owned()),
            ("TAXIWAY_PROFILES__A__CWD".to_owned(), "/data".to_owned()),
        ];
        let text = "[server]\nlisten = \"127.0.0.1:1\"\n[profiles.a]\ncommand = [\"x\"]\n";
        let config = parse(text, "taxiway.toml", &variables).expect("valid");
        assert_eq!(config.server.listen.port(), 1234);
        assert_eq!(config.server.allowed_hosts, ["lab.example"]);
        assert_eq!(config.server.socket_mode, 0o660);
        assert_eq!(config.launcher.grace, Duration::from_secs(5));
        assert_eq!(config.profiles["a"].cwd.as_deref(), Some("/data"));
    }

    #[test]
    fn a_wrong_variable_is_named() {
        assert_eq!(
            faults("", &[("TAXIWAY_SERVER__LISTN", "x")]),
            ["TAXIWAY_SERVER__LISTN: unknown key `listn` in [server]; did you mean `listen`?"]
        );
        let found = faults("", &[("TAXIWAY_LAUNCHER__GRACE", "soon")]);
        assert!(found[0].starts_with("TAXIWAY_LAUNCHER__GRACE: `soon` is not a duration"), "{found:?}");
    }
}
