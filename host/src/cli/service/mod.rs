//! `taxiway service install`: a systemd unit for the service.

mod unit;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};
use clap::{Args, Subcommand};
use nix::unistd::{Uid, User};

use self::unit::{MARKER, Scope, Unit};
use super::terminal::print;
use crate::config;

/// The unit's name.
const NAME: &str = "taxiway.service";
/// Where the service of the whole machine keeps its data, unless it is told otherwise.
const SYSTEM_DATA_DIR: &str = "/var/lib/taxiway";
/// Where units of the machine's administrator lie (systemd.unit(5)).
const SYSTEM_UNITS: &str = "/etc/systemd/system";

/// Run the service under systemd.
#[derive(Debug, Args)]
pub(super) struct Service {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Write a systemd unit that runs the service.
    Install(Install),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  taxiway service install --user --start
  sudo taxiway service install --system --run-as trainer --start
  taxiway service install --system --print

Jobs outlive the service: a stop, a restart and an upgrade (replace the program, then `systemctl restart taxiway`) leave them
alone. `taxiway queue drain` waits for them.")]
#[command(group(clap::ArgGroup::new("scope").required(true).args(["user", "system"])))]
struct Install {
    /// For yourself: a unit of your own systemd.
    #[arg(long)]
    user: bool,
    /// For the machine: a unit of the system's, with its data in /var/lib/taxiway and its socket in /run/taxiway.
    #[arg(long)]
    system: bool,
    /// With --system: the user that the service and all jobs run as, by name or number.
    #[arg(long, value_name = "USER", default_value = "taxiway", requires = "system")]
    run_as: String,
    /// Configuration file that the service reads. Default: the one it finds by itself.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the unit instead.
    #[arg(long, conflicts_with = "start")]
    print: bool,
    /// Enable and start it too; restart it if it runs.
    #[arg(long)]
    start: bool,
    /// Replace a unit that was not written by this command.
    #[arg(long)]
    force: bool,
}

impl Service {
    pub(super) fn run(self, data_dir: Option<&Path>) -> anyhow::Result<()> {
        match self.verb {
            Verb::Install(install) => install.run(data_dir),
        }
    }
}

impl Install {
    fn run(self, data_dir: Option<&Path>) -> anyhow::Result<()> {
        let unit = self.unit(data_dir)?;
        if self.print {
            return print(&unit.text());
        }
        if let Scope::System { run_as } = &unit.scope {
            ensure!(
                is_user(run_as).context("cannot look up users")?,
                "there is no user `{run_as}`: create it with `useradd --system --home-dir {SYSTEM_DATA_DIR} --shell \
                 /usr/sbin/nologin {run_as}`, or name another one with --run-as"
            );
        }
        let directory = self.directory()?;
        let path = directory.join(NAME);
        if let Ok(present) = fs::read_to_string(&path)
            && !present.starts_with(MARKER)
            && !self.force
        {
            bail!("{} was not written by this command: look at it, then use --force to replace it", path.display());
        }
        let advice = if self.system { "; run it as root" } else { "" };
        fs::create_dir_all(&directory)
            .and_then(|()| fs::write(&path, unit.text()))
            .with_context(|| format!("cannot write {}{advice}", path.display()))?;
        let systemctl = if self.user { "systemctl --user" } else { "systemctl" };
        if !self.start {
            let linger = if self.user { "\n  loginctl enable-linger       # it goes on when you log out" } else { "" };
            return print(&format!(
                "wrote {}\nnow:\n  {systemctl} daemon-reload\n  {systemctl} enable --now taxiway{linger}\n",
                path.display()
            ));
        }
        for verbs in [&["daemon-reload"][..], &["enable", NAME], &["restart", NAME]] {
            self.systemctl(verbs)?;
        }
        print(&format!("wrote {} and started it; `{systemctl} status taxiway` shows it\n", path.display()))
    }

    fn unit(&self, data_dir: Option<&Path>) -> anyhow::Result<Unit> {
        let program = std::env::current_exe().context("cannot find the taxiway program itself")?;
        let absolute = |path: &Path| std::path::absolute(path).with_context(|| path.display().to_string());
        let data_dir = match data_dir {
            Some(named) => absolute(named)?,
            None if self.system => SYSTEM_DATA_DIR.into(),
            None => config::data_dir(None)?,
        };
        let scope = if self.system { Scope::System { run_as: self.run_as.clone() } } else { Scope::User };
        let config_file = self.config.as_deref().map(absolute).transpose()?;
        if let Some(file) = &config_file {
            // A service that cannot start is found here, not in the journal.
            config::read(Some(file), &[])?;
        }
        Ok(Unit { scope, program, data_dir, config_file })
    }

    fn directory(&self) -> anyhow::Result<PathBuf> {
        if self.system {
            return Ok(SYSTEM_UNITS.into());
        }
        let home = |variable: &str| std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
        let configuration = home("XDG_CONFIG_HOME").or_else(|| Some(home("HOME")?.join(".config")));
        Ok(configuration.context("neither XDG_CONFIG_HOME nor HOME is set")?.join("systemd/user"))
    }

    fn systemctl(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let mut command = Command::new("systemctl");
        if self.user {
            command.arg("--user");
        }
        let status = command.args(arguments).status().context("cannot run systemctl: is this a systemd machine?")?;
        ensure!(status.success(), "`systemctl {}` failed: {status}", arguments.join(" "));
        Ok(())
    }
}

/// Whether systemd finds this user: digits are an id to it (systemd.exec(5), `User=`).
fn is_user(run_as: &str) -> nix::Result<bool> {
    let found = match run_as.parse() {
        Ok(id) => User::from_uid(Uid::from_raw(id)),
        Err(_) => User::from_name(run_as),
    };
    Ok(found?.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_name_and_by_number() {
        for (user, expected) in [("root", true), ("0", true), ("no-such-user", false), ("4294967000", false)] {
            assert_eq!(is_user(user), Ok(expected), "{user}");
        }
    }
}
