//! `taxiway plugin new`

use std::fs::{DirBuilder, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use serde_json::json;

use super::super::terminal::{print, print_json};

/// Begin a plugin in Rust.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  taxiway plugin new batch-limit
  taxiway plugin new budget --hooks validate,complete")]
pub(super) struct New {
    /// Its name, which is also the folder's: lower-case letters, digits and `-`.
    #[arg(value_name = "NAME", value_parser = crate_name)]
    name: String,
    /// What it does.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "validate")]
    hooks: Vec<Hook>,
    /// The folder. Default: NAME, here.
    #[arg(long, value_name = "DIR")]
    path: Option<PathBuf>,
    /// A copy of the SDK to build with, instead of the one in Taxiway's repository.
    #[arg(long, value_name = "DIR")]
    sdk: Option<PathBuf>,
}

/// A hook that a template has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Hook {
    /// May a job run?
    Validate,
    /// What does its configuration become?
    Rewrite,
    /// What happens when it has ended?
    Complete,
}

/// What a hook puts into the plugin.
struct Part {
    name: &'static str,
    imports: &'static [&'static str],
    /// Fields of the settings.
    settings: &'static str,
    code: &'static str,
    tests: &'static str,
    /// For the manifest.
    grants: &'static str,
    example: &'static str,
}

impl Hook {
    fn part(self) -> Part {
        match self {
            Self::Validate => Part {
                name: "Validate",
                imports: &["Context", "Job", "Problems", "Validate", "ValidateError"],
                settings: "    /// Keys that every configuration must have.\n    required: Vec<String>,\n",
                code: include_str!("template/validate.rs"),
                tests: include_str!("template/validate_test.rs"),
                grants: "",
                example: "required = [\"model\"]\n",
            },
            Self::Rewrite => Part {
                name: "Rewrite",
                imports: &["Change", "Context", "HookError", "Job", "Rewrite"],
                settings: "    /// Set where a configuration does not say otherwise.\n    defaults: Map<String, Value>,\n",
                code: include_str!("template/rewrite.rs"),
                tests: include_str!("template/rewrite_test.rs"),
                grants: "",
                example: "defaults = { epochs = 3 }\n",
            },
            Self::Complete => Part {
                name: "Complete",
                imports: &["Complete", "Delivery", "HookError", "Job", "Outcome", "http"],
                settings: "    /// Who is told.\n    url: String,\n",
                code: include_str!("template/complete.rs"),
                tests: include_str!("template/complete_test.rs"),
                grants: "http = [\"https://example.org\"]\n",
                example: "url = \"https://example.org/jobs\"\n",
            },
        }
    }
}

impl New {
    pub(super) fn run(mut self, json: bool) -> anyhow::Result<()> {
        self.hooks.sort();
        self.hooks.dedup();
        let folder = self.path.clone().unwrap_or_else(|| PathBuf::from(&self.name));
        let sdk = match &self.sdk {
            None => format!("git = \"{}\"", env!("CARGO_PKG_REPOSITORY")),
            Some(path) => {
                let path = path.canonicalize().with_context(|| format!("cannot find the SDK {}", path.display()))?;
                if !path.join("Cargo.toml").is_file() {
                    bail!("{} holds no Cargo.toml: --sdk takes the folder plugins/sdk", path.display());
                }
                format!("path = {:?}", path.to_string_lossy())
            }
        };
        let manifest = format!("{}.toml", self.name);
        let files = [
            ("Cargo.toml", include_str!("template/Cargo.toml.in").replace("{name}", &self.name).replace("{sdk}", &sdk)),
            (".cargo/config.toml", include_str!("template/cargo-config.toml.in").to_owned()),
            (".gitignore", "/target\n".to_owned()),
            ("src/lib.rs", self.code()),
            (manifest.as_str(), self.manifest()),
        ];
        DirBuilder::new().create(&folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
        for (path, text) in &files {
            write(&folder.join(path), text)?;
        }
        let component = format!("target/wasm32-wasip2/release/{}.wasm", self.name.replace('-', "_"));
        if json {
            return print_json(
                &json!({"folder": folder, "files": files.map(|(path, _)| path.to_owned()), "component": component}),
            );
        }
        print(&format!(
            "{} is a plugin now. Build it and try it:\n\n  cd {}\n  cargo host-test\n  cargo build --release\n  \
             taxiway plugin test {component} --manifest {manifest}\n\nThen copy both into the service's plugins folder, \
             the manifest first:\n\n  cp {manifest} PLUGINS_DIR/\n  cp {component} PLUGINS_DIR/{}.wasm\n",
            self.name,
            folder.display(),
            self.name,
        ))
    }

    fn parts(&self) -> Vec<Part> {
        self.hooks.iter().map(|hook| hook.part()).collect()
    }

    fn code(&self) -> String {
        let parts = self.parts();
        let joined = |piece: fn(&Part) -> &'static str, between: &str| {
            parts.iter().map(piece).filter(|text| !text.is_empty()).collect::<Vec<_>>().join(between)
        };
        let mut imports: Vec<&str> = parts.iter().flat_map(|part| part.imports.iter().copied()).collect();
        imports.extend(["Metadata", "Problems", "Value", "export", "json", "read_settings", "settings"]);
        imports.sort_by_key(|name| (name.starts_with(char::is_lowercase), *name));
        imports.dedup();
        let map = if self.hooks.contains(&Hook::Rewrite) { "use serde_json::Map;\n" } else { "" };
        include_str!("template/lib.rs.in")
            .replace("{name}", &self.name)
            .replace("{imports}", &imports.join(", "))
            .replace("{map}", map)
            .replace("{settings}", &joined(|part| part.settings, ""))
            .replace("{hooks}", &joined(|part| part.code, "\n"))
            .replace("{export}", &joined(|part| part.name, " + "))
            .replace("{tests}", &joined(|part| part.tests, "\n"))
    }

    fn manifest(&self) -> String {
        let parts = self.parts();
        let grants: String = parts.iter().map(|part| part.grants).collect();
        let settings: String = parts.iter().map(|part| part.example).collect();
        include_str!("template/manifest.toml.in")
            .replace("{name}", &self.name)
            .replace("{grants}", &grants)
            .replace("{settings}", &settings)
    }
}

/// A new file; one that is there already stays as it is.
fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let failed = || format!("cannot write {}", path.display());
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).with_context(failed)?;
    }
    let mut file = OpenOptions::new().write(true).create_new(true).open(path).with_context(failed)?;
    file.write_all(text.as_bytes()).with_context(failed)
}

fn crate_name(text: &str) -> Result<String, String> {
    let fits = text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.len() <= 64
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.ends_with('-');
    if fits {
        Ok(text.to_owned())
    } else {
        Err("a name has lower-case letters, digits and `-`, like batch-limit".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(hooks: &[Hook]) -> New {
        New { name: "mine".to_owned(), hooks: hooks.to_vec(), path: None, sdk: None }
    }

    #[test]
    fn every_hook_that_is_asked_for_is_in_the_code_and_nothing_is_left_to_fill_in() {
        let code = new(&[Hook::Validate, Hook::Rewrite, Hook::Complete]).code();
        assert!(code.contains("export!(Plugin: Validate + Rewrite + Complete + Metadata);"), "{code}");
        let open: Vec<&str> = ["{name}", "{imports}", "{settings}", "{hooks}", "{export}", "{tests}", "{map}"]
            .into_iter()
            .filter(|field| code.contains(field))
            .collect();
        assert_eq!(open, Vec::<&str>::new());
        assert!(!new(&[Hook::Validate]).code().contains("Complete"));
    }

    #[test]
    fn its_manifest_can_be_read() {
        for hooks in [&[Hook::Validate][..], &[Hook::Rewrite, Hook::Complete]] {
            let text = new(hooks).manifest();
            taxiway_plugin_host::Manifest::parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        }
    }

    #[test]
    fn a_name_that_cargo_would_refuse_is_refused_at_once() {
        assert!(crate_name("batch-limit2").is_ok());
        for wrong in ["", "Batch", "2fast", "a b", "../x", "a-"] {
            assert!(crate_name(wrong).is_err(), "{wrong}");
        }
    }
}
