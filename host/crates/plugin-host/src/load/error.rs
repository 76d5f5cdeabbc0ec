//! Why a plugin is not in force, each with its own sentence of advice.

use crate::compile::CacheError;
use crate::folder::FileError;
use crate::manifest::ManifestError;
use crate::secret;
use crate::view::CallError;

/// What stands between a file and a plugin in force.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The manifest has a mistake.
    #[error("{file}.toml, {source}")]
    Manifest {
        /// The plugin's name.
        file: String,
        /// The mistake and its line.
        source: ManifestError,
    },
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The name of the file is none that a plugin can have.
    #[error("`{0}` is no name for a plugin")]
    Name(String),
    /// The manifest is there, its component is not.
    #[error("there is no {file} beside the manifest")]
    NoComponent {
        /// The component's file.
        file: String,
        /// The plugin's name.
        name: String,
    },
    /// A component without a manifest, beside a manifest that cannot be read and may be the one that names it.
    #[error("it has no manifest of its own, and {0}.toml, which may be the one that names it, cannot be read")]
    MayServe(String),
    /// The service has no such component inside.
    #[error("no component named `{name}` is part of this service")]
    NoBundled {
        /// The name in the manifest.
        name: String,
        /// Those that are there.
        known: Vec<&'static str>,
    },
    /// The component is another than the manifest pins.
    #[error("the component has the SHA-256 {found}, the manifest asks for {wanted}")]
    Digest {
        /// Of the file.
        found: String,
        /// Of the manifest.
        wanted: String,
    },
    /// Not WebAssembly.
    #[error("the file is not WebAssembly: it begins with {0}")]
    NotWasm(String),
    /// WebAssembly, but a module.
    #[error("the file is a core WebAssembly module, not a component")]
    CoreModule,
    /// Machine code.
    #[error("the file holds compiled code, which is never loaded from the plugins folder")]
    Compiled,
    /// It cannot be compiled.
    #[error("compiling failed: {0}")]
    Compile(#[from] CacheError),
    /// It imports what nothing here exports.
    #[error("the component imports `{0}`, which this service does not have")]
    UnknownImport(String),
    /// It was built for another version of the interface.
    #[error("the component was built for {built_for}, this server speaks {speaks}{detail}")]
    Version {
        /// The package version that it names.
        built_for: String,
        /// The package version of this service.
        speaks: &'static str,
        /// What does not fit, if that is not clear from the versions.
        detail: String,
    },
    /// It has nothing to call.
    #[error("the component exports none of validate, rewrite and complete")]
    NoHook,
    /// A hook, or an import, has other types than the interface.
    #[error("{part} does not have the types of {speaks}: {detail}")]
    WrongTypes {
        /// The interface.
        part: String,
        /// The package version of this service.
        speaks: &'static str,
        /// The first difference.
        detail: String,
    },
    /// The file was replaced while it waited to be compiled; the new one is loaded next.
    #[error("the file changed while it was being loaded")]
    Changed,
    /// Its `metadata` failed.
    #[error("asking it who it is failed: {0}")]
    Metadata(Box<CallError>),
    /// Its settings are wrong by its own account.
    #[error("its settings are wrong: {}", .0.join("; "))]
    Settings(Vec<String>),
    /// A secret is not there.
    #[error("the secret {name} cannot be read: {why}")]
    Secret {
        /// Its name in the manifest.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// A secret cannot be hidden.
    #[error("the secret {name} is shorter than {} bytes", secret::SHORTEST)]
    ShortSecret {
        /// Its name in the manifest.
        name: String,
    },
    /// A granted directory is not there.
    #[error("the directory {path} of `read` cannot be opened: {why}")]
    Directory {
        /// As in the manifest.
        path: String,
        /// The system's answer.
        why: String,
    },
    /// The loading itself broke.
    #[error("loading it failed inside the service: {0}")]
    Inside(String),
}

impl LoadError {
    /// What a person can do about it: one sentence.
    pub fn advice(&self) -> String {
        match self {
            LoadError::Manifest { .. } => "Mend that line and save the file; the service reads it again at once.".to_owned(),
            LoadError::File(FileError::TooLarge { .. }) => {
                "Build with optimisation and without debug information (strip = true), or raise plugins.limits.component.".to_owned()
            }
            LoadError::File(FileError::Untrusted(_)) => "Give the file to the service's user or to root, and take others' right to write.".to_owned(),
            LoadError::File(_) => "Check that the file is a plain file that the service's user can read.".to_owned(),
            LoadError::Name(_) => "Rename the file: letters, digits, `-`, `_` and `.`, not at the start, at most 64; any other name is passed over in the plugins folder.".to_owned(),
            LoadError::NoComponent { file, name } => format!(
                "Put {file} into the plugins folder, or name another file with component = \"FILE.wasm\"; to take the plugin out of force, remove {name}.toml too or write enabled = false into it."
            ),
            LoadError::MayServe(manifest) => format!("Mend {manifest}.toml, or give the component a manifest of its own: an empty one will do."),
            LoadError::NoBundled { known, .. } if known.is_empty() => "This build has no bundled plugins; use component = \"FILE.wasm\".".to_owned(),
            LoadError::NoBundled { known, .. } => format!("Those that are: {}.", known.join(", ")),
            LoadError::Digest { .. } => "If the new file is what you want, put its digest into the manifest's sha256; else restore the file.".to_owned(),
            LoadError::NotWasm(_) => "Check that the file was copied whole, and that it is the build's .wasm file.".to_owned(),
            LoadError::CoreModule => {
                "Build for wasm32-wasip2 (cargo build --target wasm32-wasip2), or wrap the module with `wasm-tools component new`.".to_owned()
            }
            LoadError::Compiled => "Put the .wasm component there; the service compiles it itself and keeps the result.".to_owned(),
            LoadError::Compile(CacheError::TooSlow(_)) => "Make the component smaller, or raise plugins.limits.compile_timeout.".to_owned(),
            LoadError::Compile(CacheError::Died { .. }) => "Make the component smaller, or raise plugins.limits.compile_memory.".to_owned(),
            LoadError::Compile(CacheError::TooLarge { .. }) => {
                "Make the component smaller, or of fewer instances of modules with many imports.".to_owned()
            }
            LoadError::Compile(CacheError::Refused(_)) => {
                "The file is damaged or uses a WebAssembly feature that is off here; copy it again, or rebuild it.".to_owned()
            }
            LoadError::Compile(CacheError::Io { .. }) => "Check that the cache folder has room and that the service may start processes.".to_owned(),
            LoadError::UnknownImport(name) if name.starts_with("wasi:") => {
                "Plugins have WASI 0.2 and wasi:http 0.2; rebuild for wasm32-wasip2.".to_owned()
            }
            LoadError::UnknownImport(_) => "Plugins may import taxiway:plugin/host, WASI 0.2 and wasi:http 0.2, nothing else.".to_owned(),
            LoadError::Version { .. } => "Rebuild the plugin with the SDK of this server's version, or use a server that speaks the plugin's.".to_owned(),
            LoadError::NoHook => "Export taxiway:plugin/validate, rewrite or complete; with the SDK: export!(MyPlugin: Validate).".to_owned(),
            LoadError::WrongTypes { .. } => "Rebuild the plugin against the wit/ folder of this server's version, unchanged.".to_owned(),
            LoadError::Changed => "Nothing: the new file is loaded at once.".to_owned(),
            LoadError::Metadata(_) => "Run `taxiway plugin test` on the file to see what it does.".to_owned(),
            LoadError::Settings(_) => "Mend [settings] in the manifest.".to_owned(),
            LoadError::Secret { .. } => "Set the variable in the service's environment, or make the file readable for its user.".to_owned(),
            LoadError::ShortSecret { .. } => "Give it a longer one: wherever a secret is taken out of what a plugin says, one so short would go out of \
                 ordinary words. What need not be hidden belongs into [settings]."
                .to_owned(),
            LoadError::Directory { .. } => "Make the directory, or take it out of `read`.".to_owned(),
            LoadError::Inside(_) => "This is a bug in the service; its log says more.".to_owned(),
        }
    }
}
