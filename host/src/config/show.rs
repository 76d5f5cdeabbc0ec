//! The configuration as a TOML document.

use toml::{Table, Value};

use super::read::keys_of;
use super::sections::{Config, GpuSection, LauncherSection, PluginsSection, ServerSection};

/// `config` as TOML. Secrets are hidden; keys that have no value stand there as comments.
///
/// # Errors
/// When the configuration holds a number that TOML cannot write (over 2^63).
pub fn show(config: &Config) -> Result<String, toml::ser::Error> {
    let table = Table::try_from(config)?;
    let mut text = String::new();
    for (name, section) in &table {
        let Value::Table(section) = section else { continue };
        let (values, tables): (Table, Table) = section.clone().into_iter().partition(|(_, value)| !value.is_table());
        let unset = unset_keys(name, section);
        if !values.is_empty() || !unset.is_empty() {
            text.push_str(&format!("[{name}]\n{}", toml::to_string(&values)?));
            unset.iter().for_each(|key| text.push_str(&format!("# {key} is not set\n")));
            text.push('\n');
        }
        for (inner, value) in tables {
            let whole = Table::from_iter([(name.clone(), Value::Table(Table::from_iter([(inner, value)])))]);
            text.push_str(&toml::to_string(&whole)?);
            text.push('\n');
        }
    }
    Ok(text)
}

fn unset_keys(section: &str, values: &Table) -> Vec<&'static str> {
    let known = match section {
        "server" => keys_of::<ServerSection>(),
        "gpu" => keys_of::<GpuSection>(),
        "launcher" => keys_of::<LauncherSection>(),
        "plugins" => keys_of::<PluginsSection>(),
        _ => &[],
    };
    known.iter().copied().filter(|key| !values.contains_key(*key)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    #[test]
    fn what_is_shown_can_be_read_again() {
        let shown = show(&Config::default()).expect("writable");
        assert_eq!(parse(&shown, "shown", &[]).expect("readable"), Config::default(), "{shown}");
        assert!(shown.contains("# socket is not set"), "{shown}");
    }

    #[test]
    fn secrets_are_not_shown() {
        let text = "[profiles.a]\ncommand = [\"x\"]\nenv = { TOKEN = { secret = \"hunter2\" } }\n";
        let shown = show(&parse(text, "t", &[]).expect("valid")).expect("writable");
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
