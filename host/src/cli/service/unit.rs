//! The text of the unit (systemd.service(5), systemd.exec(5), systemd.resource-control(5)).

use std::fmt::Write;
use std::path::{Path, PathBuf};

/// How a unit that this program may replace begins.
pub(super) const MARKER: &str = "# Written by `taxiway service install`";

/// Whose systemd runs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Scope {
    /// The calling user's.
    User,
    /// The machine's.
    System {
        /// The user that the service and its jobs run as.
        run_as: String,
    },
}

/// What a unit is made of. All paths are absolute.
#[derive(Debug, Clone)]
pub(super) struct Unit {
    pub(super) scope: Scope,
    pub(super) program: PathBuf,
    pub(super) data_dir: PathBuf,
    pub(super) config_file: Option<PathBuf>,
}

/// What both kinds have.
const COMMON: &str = "\
Type=notify
NotifyAccess=main
Restart=on-failure
RestartSec=1
# Jobs and their shims are processes of this unit. Stopping, restarting or upgrading the service ends the service alone: they
# run on, and the next one takes them over.
KillMode=process
# Each job gets a control group of its own below this unit's. The service itself stays out of their way in a group beside them
# (systemd 254 and later; with an older one jobs have groups, and `memory` of a profile is not enforced).
Delegate=yes
DelegateSubgroup=service
# The kernel ending a job for want of memory is that job's end, not the service's.
OOMPolicy=continue
TasksMax=infinity
# Hardening. Whatever is taken away here is taken away from the jobs too, so it is only what no training needs: devices, home
# directories, /tmp and the network are theirs.
NoNewPrivileges=yes
LockPersonality=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
";

/// What only the machine's systemd can do.
const SYSTEM: &str = "\
ProtectHostname=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
CapabilityBoundingSet=
RuntimeDirectory=taxiway
RuntimeDirectoryMode=0755
Environment=TAXIWAY_SERVER__SOCKET=/run/taxiway/taxiway.sock
";

impl Unit {
    /// The whole file.
    pub(super) fn text(&self) -> String {
        let mut text = format!("{MARKER}; edit a copy, or `systemctl edit taxiway`.\n\n[Unit]\n");
        text.push_str("Description=Taxiway, a queue of GPU jobs\n");
        if self.scope != Scope::User {
            text.push_str("After=network.target nvidia-persistenced.service\n");
        }
        let mut command = format!("{} serve --data-dir {}", quoted(&self.program), quoted(&self.data_dir));
        if let Some(config_file) = &self.config_file {
            // A String takes whatever is written to it.
            let _ = write!(command, " --config {}", quoted(config_file));
        }
        let _ = write!(text, "\n[Service]\nExecStart={command}\n{COMMON}");
        if let Scope::System { run_as } = &self.scope {
            let _ = write!(text, "User={run_as}\n{SYSTEM}");
            if let Ok(below) = self.data_dir.strip_prefix("/var/lib") {
                let _ = write!(text, "StateDirectory={}\nStateDirectoryMode=0700\n", quoted(below));
            }
        }
        let target = if self.scope == Scope::User { "default.target" } else { "multi-user.target" };
        let _ = write!(text, "\n[Install]\nWantedBy={target}\n");
        text
    }
}

/// A word as systemd.syntax(7) reads it: quoted where it must be, with specifiers and variables taken literally.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%").replace('$', "$$");
    if escaped.chars().any(|c| c.is_whitespace() || "\"'\\;".contains(c)) { format!("\"{escaped}\"") } else { escaped }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(scope: Scope) -> Unit {
        Unit { scope, program: "/usr/bin/taxiway".into(), data_dir: "/var/lib/taxiway".into(), config_file: None }
    }

    #[test]
    fn a_stop_of_the_unit_leaves_jobs_alone_and_each_can_have_a_group() {
        for scope in [Scope::User, Scope::System { run_as: "trainer".into() }] {
            let text = unit(scope).text();
            for line in ["Type=notify", "KillMode=process", "Delegate=yes", "OOMPolicy=continue", "NoNewPrivileges=yes"]
            {
                assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
            }
            assert!(text.contains("\nExecStart=/usr/bin/taxiway serve --data-dir /var/lib/taxiway\n"), "{text}");
        }
    }

    #[test]
    fn the_machines_unit_runs_as_its_user_and_ones_own_does_not_say_whom() {
        let system = unit(Scope::System { run_as: "trainer".into() }).text();
        assert!(system.contains("\nUser=trainer\n") && system.contains("\nStateDirectory=taxiway\n"), "{system}");
        assert!(system.contains("WantedBy=multi-user.target"));
        let own = unit(Scope::User).text();
        assert!(!own.contains("User=") && !own.contains("CapabilityBoundingSet"), "{own}");
        assert!(own.contains("WantedBy=default.target"));
    }

    #[test]
    fn paths_with_spaces_and_signs_reach_the_service_as_they_are() {
        assert_eq!(quoted(Path::new("/opt/my taxi/100%$x")), "\"/opt/my taxi/100%%$$x\"");
        assert_eq!(quoted(Path::new("/opt/taxiway")), "/opt/taxiway");
    }
}
