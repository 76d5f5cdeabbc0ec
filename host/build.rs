//! Builds the bundled plugins (`plugins/`, a workspace of its own for `wasm32-wasip2`) and puts their components where
//! `bundled.rs` includes them from.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

const TARGET: &str = "wasm32-wasip2";

/// Package, and the file that its component is built into.
const PLUGINS: [(&str, &str); 3] =
    [("config-schema", "config_schema.wasm"), ("defaults", "defaults.wasm"), ("webhook", "webhook.wasm")];

/// What the components are made of; `plugins/target` is not, and a directory here is watched with all that is in it.
const SOURCES: [&str; 8] = [
    "plugins/.cargo",
    "plugins/Cargo.lock",
    "plugins/Cargo.toml",
    "plugins/config-schema",
    "plugins/defaults",
    "plugins/sdk",
    "plugins/webhook",
    "wit",
];

/// What cargo and its companions (clippy, a compiler cache, coverage) set for the host's own build. A nested cargo
/// would take it for its own, and build the guests with flags that are not theirs, or wait for its parent's lock.
const NOT_FOR_GUESTS: [&str; 15] = [
    "CARGO_BUILD_BUILD_DIR",
    "CARGO_BUILD_RUSTC_WRAPPER",
    "CARGO_BUILD_RUSTC_WORKSPACE_WRAPPER",
    "CARGO_BUILD_RUSTDOCFLAGS",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_BUILD_TARGET_DIR",
    "CARGO_ENCODED_RUSTDOCFLAGS",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_TARGET_DIR",
    "CLIPPY_ARGS",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_WRAPPER",
    "RUSTDOCFLAGS",
    "RUSTFLAGS",
];

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            println!("cargo::error={sentence}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), String> {
    let manifest_dir = directory("CARGO_MANIFEST_DIR")?;
    let out_dir = directory("OUT_DIR")?;
    let root = manifest_dir.parent().ok_or("the crate has no parent directory: build it inside its repository")?;
    for source in SOURCES {
        println!("cargo::rerun-if-changed={}", root.join(source).display());
    }
    println!("cargo::rerun-if-changed=build.rs");

    require_target()?;
    let built = compile(&root.join("plugins"), &target_dir(&out_dir)?)?;
    for (package, file) in PLUGINS {
        let (from, to) = (built.join(file), out_dir.join(file));
        fs::copy(&from, &to).map_err(|error| {
            format!("cannot copy the bundled plugin {package} from {} to {}: {error}", from.display(), to.display())
        })?;
    }
    Ok(())
}

/// One target directory for the guests of all of the host's profiles: `OUT_DIR` is `TARGET/PROFILE/build/NAME/out`. It
/// must not be the host's own, whose lock the outer cargo holds.
fn target_dir(out_dir: &Path) -> Result<PathBuf, String> {
    let outer = out_dir.ancestors().nth(4);
    outer.map(|outer| outer.join("plugins")).ok_or_else(|| format!("unexpected OUT_DIR: {}", out_dir.display()))
}

fn compile(plugins: &Path, target_dir: &Path) -> Result<PathBuf, String> {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(plugins).args(["build", "--release", "--locked", "--target", TARGET]);
    cargo.arg("--target-dir").arg(target_dir);
    for (package, _) in PLUGINS {
        cargo.args(["--package", package]);
    }
    for name in NOT_FOR_GUESTS {
        cargo.env_remove(name);
    }
    let status = cargo.status().map_err(|error| format!("cannot start cargo for the bundled plugins: {error}"))?;
    if !status.success() {
        return Err(format!(
            "the bundled plugins did not build ({status}); the reason is above, and the same build is: cd {} && cargo \
             build --release --locked",
            plugins.display()
        ));
    }
    Ok(target_dir.join(TARGET).join("release"))
}

/// Says what is missing before rustc says it a hundred times (`can't find crate for core`).
fn require_target() -> Result<(), String> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc)
        .args(["--print", "target-libdir", "--target", TARGET])
        .output()
        .map_err(|error| format!("cannot ask rustc about the target {TARGET}: {error}"))?;
    let library = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    if output.status.success() && library.is_dir() {
        return Ok(());
    }
    Err(format!(
        "the Rust target {TARGET} is missing, which the bundled plugins are built for: run `rustup target add {TARGET}` \
         (or `make setup`), then build again"
    ))
}

fn directory(variable: &str) -> Result<PathBuf, String> {
    env::var_os(variable)
        .map(PathBuf::from)
        .ok_or_else(|| format!("{variable} is not set: this program is run by cargo"))
}
