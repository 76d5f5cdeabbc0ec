//! A launch's directory, and the plan with its placeholders filled in.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::FallocateFlags;
use taxiway_job::{JobId, LaunchId, ProcessSpec};

use super::stranger::{self, Stranger};
use crate::cgroup::Delegated;
use crate::launch::{LaunchPlan, PrepareError};
use crate::shim::DEFAULT_PATH;
use crate::wire::{ShimPlan, file};

/// Room set aside for the exit record, so that a disk that fills up meanwhile does not keep it from being written. A record has
/// a few hundred bytes; the argv of a failed exec may make it longer.
const RECORD_BYTES: i64 = 4096;

/// The variables of the fixed minimal environment whose values depend on the service's user.
#[derive(Clone)]
pub(super) struct User {
    pub(super) name: String,
    pub(super) home: String,
}

impl User {
    /// The user that this process runs as, from the system's user database; the service's own environment is not asked.
    pub(super) fn current() -> Self {
        let uid = nix::unistd::geteuid();
        match nix::unistd::User::from_uid(uid) {
            Ok(Some(user)) => Self { name: user.name, home: user.dir.to_string_lossy().into_owned() },
            // A container may run under a uid without an entry.
            Ok(None) | Err(_) => Self { name: uid.to_string(), home: "/".to_owned() },
        }
    }
}

/// What holds for the jobs of a launcher alike.
pub(super) struct Limits {
    pub(super) log_max_size: u64,
    pub(super) groups: Option<Delegated>,
    pub(super) unkillable_after: Duration,
}

/// `jobs/ID`, kept across attempts.
pub(crate) fn job_directory(jobs_dir: &Path, job: JobId) -> PathBuf {
    jobs_dir.join(job.to_string())
}

/// `jobs/ID/LAUNCH_ID`.
pub(crate) fn launch_directory(jobs_dir: &Path, job: JobId, launch: LaunchId) -> PathBuf {
    job_directory(jobs_dir, job).join(launch.to_string())
}

/// The launches of a job that have a directory: whatever in the job's own has the name of one, as this program writes it. All else is
/// the job's.
///
/// # Errors
/// When the job's directory cannot be read.
pub(super) fn launches_in(job_directory: &Path) -> io::Result<Vec<LaunchId>> {
    let mut launches = Vec::new();
    for entry in fs::read_dir(job_directory)? {
        let name = entry?.file_name();
        let named = |launch: &LaunchId| name == *launch.to_string();
        launches.extend(name.to_str().and_then(|name| name.parse().ok()).filter(named));
    }
    Ok(launches)
}

/// Makes the directory with an empty exit record, the configuration and an empty log. Leaves nothing behind when it fails.
///
/// The exit record is the first to come and, in [`remove_all`], the last to go: by it a launch's directory is known as one.
///
/// `knows` names the launches that the host follows. None other of the job may go on.
pub(super) fn make(
    jobs_dir: &Path,
    plan: &LaunchPlan,
    user: &User,
    limits: &Limits,
    knows: &dyn Fn(LaunchId) -> bool,
) -> Result<ShimPlan, PrepareError> {
    let shim_plan = fill_in(jobs_dir, plan, user, limits)?;
    let directory = launch_directory(jobs_dir, plan.job, plan.launch);
    let mut builder = DirBuilder::new();
    builder.mode(0o700);
    let job_directory = job_directory(jobs_dir, plan.job);
    match builder.create(&job_directory) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            builder.recursive(true).create(&job_directory).map_err(|error| at_job(jobs_dir, &job_directory, &error))?;
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let find = || stranger::find(jobs_dir, plan.job, knows);
            let found = match find() {
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied && restore_access(&directory) => find(),
                found => found,
            };
            let found = found.map_err(|error| at_job(jobs_dir, &job_directory, &error))?;
            if let Some(Stranger { launch, shim_pid, .. }) = found {
                return Err(PrepareError::StillRunning { launch, shim_pid });
            }
        }
        Err(error) => return Err(at_job(jobs_dir, &job_directory, &error)),
    }
    builder.recursive(false);
    let created = match builder.create(&directory) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && restore_access(&directory) => {
            builder.create(&directory)
        }
        created => created,
    };
    created.map_err(|error| at_job(jobs_dir, &directory, &error))?;
    let filled = fill(&directory, plan);
    if filled.is_err() {
        remove(&directory);
    }
    filled.map(|()| shim_plan)
}

/// Gives this user its access back to a launch's directory and the job's above it, which a job can take away. True when something
/// was changed.
pub(super) fn restore_access(directory: &Path) -> bool {
    let mut changed = false;
    // From above: the lower one is reached through the upper one.
    for path in directory.parent().into_iter().chain([directory]) {
        let Ok(metadata) = fs::symlink_metadata(path) else { continue };
        let mode = metadata.permissions().mode();
        if metadata.is_dir() && mode & 0o700 != 0o700 {
            changed |= fs::set_permissions(path, fs::Permissions::from_mode(0o700)).is_ok();
        }
    }
    changed
}

/// Removes the directory of a launch that never started anything.
pub(super) fn remove(directory: &Path) {
    if let Err(error) = remove_all(directory)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(directory = %directory.display(), %error, "cannot remove the directory of a launch that did not start");
    }
}

/// Removes a launch's directory, the exit record after all else in there. Another may do the same at this moment.
///
/// # Errors
/// When it cannot be removed, or has been.
pub(super) fn remove_all(directory: &Path) -> io::Result<()> {
    if !fs::symlink_metadata(directory)?.is_dir() {
        // What a link in its place leads to is not its own.
        return fs::remove_file(directory);
    }
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name() == file::EXIT {
            continue;
        }
        let removed = match entry.file_type() {
            Ok(kind) if kind.is_dir() => fs::remove_dir_all(entry.path()),
            Ok(_) => fs::remove_file(entry.path()),
            Err(error) => Err(error),
        };
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    fs::remove_dir_all(directory)
}

fn fill(directory: &Path, plan: &LaunchPlan) -> Result<(), PrepareError> {
    let create = |name: &str| -> Result<(File, PathBuf), PrepareError> {
        let path = directory.join(name);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        file.map_err(|error| failed(&path, &error)).map(|file| (file, path))
    };
    let (record, path) = create(file::EXIT)?;
    // A filesystem without this call gives no such promise; the shim then stays until the record can be written.
    let reserved = nix::fcntl::fallocate(&record, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, RECORD_BYTES);
    if let Err(error @ (nix::errno::Errno::ENOSPC | nix::errno::Errno::EDQUOT)) = reserved {
        return Err(failed(&path, &io::Error::from(error)));
    }
    if let Some(config) = &plan.config {
        let (mut file, path) = create(&config.file_name)?;
        file.write_all(&config.bytes).map_err(|error| failed(&path, &error))?;
    }
    create(file::LOG).map(drop)
}

fn failed(path: &Path, error: &io::Error) -> PrepareError {
    let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    PrepareError::Directory { path: path.to_owned(), error: error.to_string(), full }
}

/// What kept a job's directory from being used or a launch's from being made in it. The job runs as this user and can put anything
/// in their place, a file or a link that leads nowhere; where a directory can be made for another job, that is its own affair.
fn at_job(jobs_dir: &Path, path: &Path, error: &io::Error) -> PrepareError {
    use nix::errno::Errno;
    let is_about_the_path = matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(
            Errno::ENOENT
                | Errno::ENOTDIR
                | Errno::EISDIR
                | Errno::ELOOP
                | Errno::EEXIST
                | Errno::EACCES
                | Errno::EPERM
                | Errno::ENXIO
        )
    );
    if is_about_the_path && takes_directories(jobs_dir) {
        let path = path.display();
        return PrepareError::Plan(format!(
            "{path} cannot be used: {error}; an earlier attempt left something else in its place"
        ));
    }
    failed(path, error)
}

/// Whether a directory can be made there.
fn takes_directories(jobs_dir: &Path) -> bool {
    let probe = jobs_dir.join(format!(".{}", LaunchId::random()));
    let made = DirBuilder::new().mode(0o700).create(&probe).is_ok();
    if made {
        remove(&probe);
    }
    made
}

/// Fills in the placeholders and makes the whole environment but for the GPUs.
fn fill_in(jobs_dir: &Path, plan: &LaunchPlan, user: &User, limits: &Limits) -> Result<ShimPlan, PrepareError> {
    let wrong = |message: String| PrepareError::Plan(message);
    let text = |path: PathBuf| {
        path.into_os_string().into_string().map_err(|path| wrong(format!("the path {path:?} is not valid UTF-8")))
    };
    if plan.command.first().is_none_or(String::is_empty) {
        return Err(wrong("the command is empty".to_owned()));
    }
    let job = plan.job.to_string();
    let attempt = plan.attempt.to_string();
    let job_dir = text(job_directory(jobs_dir, plan.job))?;
    let directory = launch_directory(jobs_dir, plan.job, plan.launch);
    let config_file = match &plan.config {
        Some(config) if config.file_name.contains('/') || is_reserved(&config.file_name) => {
            return Err(wrong(format!("`{}` is no name for a configuration file", config.file_name)));
        }
        Some(config) => Some(text(directory.join(&config.file_name))?),
        None => None,
    };
    let progress_file = text(directory.join(file::PROGRESS))?;
    let external_id = plan.external_id.as_deref().unwrap_or(&job);
    let placeholders = [
        ("{config_file}", config_file.as_deref().unwrap_or("")),
        ("{job_id}", job.as_str()),
        ("{external_id}", external_id),
        ("{job_dir}", job_dir.as_str()),
        ("{attempt}", attempt.as_str()),
    ];

    let mut env = Environment::default();
    for (name, value) in
        [("PATH", DEFAULT_PATH), ("HOME", &user.home), ("USER", &user.name), ("LANG", "C.UTF-8"), ("TMPDIR", "/tmp")]
    {
        env.set(name, value);
    }
    for (name, value) in &plan.env {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(wrong(format!(
                "the environment variable {name:?} has a name or a value that no process can have"
            )));
        }
        env.set(name, value);
    }
    // The shim names the job's GPUs at `go`.
    env.variables.retain(|(name, _)| name != "CUDA_VISIBLE_DEVICES");
    let launch = plan.launch.to_string();
    for (name, value) in [
        ("CUDA_DEVICE_ORDER", "PCI_BUS_ID"),
        ("TAXIWAY_JOB_ID", &job),
        ("TAXIWAY_ATTEMPT", &attempt),
        ("TAXIWAY_LAUNCH_ID", &launch),
        ("TAXIWAY_JOB_DIR", &job_dir),
        ("TAXIWAY_PROGRESS_FILE", &progress_file),
        ("TAXIWAY_CONFIG_FILE", config_file.as_deref().unwrap_or("")),
        ("PYTHONUNBUFFERED", "1"),
    ] {
        env.set(name, value);
    }
    Ok(ShimPlan {
        argv: plan.command.iter().map(|word| substitute(word, &placeholders)).collect(),
        env: env.variables,
        cwd: plan.cwd.clone().map_or(Ok(job_dir), text)?,
        hide_gpus: plan.hide_gpus,
        time_limit_ms: plan.time_limit.map(milliseconds),
        grace_ms: milliseconds(plan.grace),
        process: ProcessSpec {
            // Without a group that has the controller there is nothing that could bound it; the service has said so.
            memory: plan.process.memory.filter(|_| limits.groups.as_ref().is_some_and(Delegated::bounds_memory)),
            ..plan.process.clone()
        },
        log_max_size: limits.log_max_size,
        group_base: limits.groups.as_ref().map(|groups| text(groups.path().to_owned())).transpose()?,
        unkillable_ms: milliseconds(limits.unkillable_after),
    })
}

fn is_reserved(name: &str) -> bool {
    matches!(
        name,
        "" | "."
            | ".."
            | file::LOCK
            | file::EXIT
            | file::LOG
            | file::STARTED
            | file::SOCKET
            | file::SOCKET_UNREADY
            | file::PROGRESS
            | file::GROUP
    )
}

pub(super) fn milliseconds(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[derive(Default)]
struct Environment {
    variables: Vec<(String, String)>,
}

impl Environment {
    fn set(&mut self, name: &str, value: &str) {
        match self.variables.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => value.clone_into(old),
            None => self.variables.push((name.to_owned(), value.to_owned())),
        }
    }
}

/// Fills in placeholders in one pass: what a value brings in is not looked at again.
fn substitute(word: &str, placeholders: &[(&str, &str)]) -> String {
    let mut filled = String::with_capacity(word.len());
    let mut rest = word;
    while let Some(at) = rest.find('{') {
        filled.push_str(&rest[..at]);
        rest = &rest[at..];
        match placeholders.iter().find(|(name, _)| rest.starts_with(name)) {
            Some((name, value)) => {
                filled.push_str(value);
                rest = &rest[name.len()..];
            }
            None => {
                filled.push('{');
                rest = &rest[1..];
            }
        }
    }
    filled.push_str(rest);
    filled
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_that_a_job_took_away_is_given_back() {
        let jobs = tempfile::tempdir().expect("a directory");
        let launch = jobs.path().join("job/launch");
        fs::create_dir_all(&launch).expect("directories");
        for path in [launch.as_path(), launch.parent().expect("the job's")] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o000)).expect("they are ours");
        }
        assert!(restore_access(&launch));
        for path in [launch.parent().expect("the job's"), &launch] {
            let mode = fs::metadata(path).expect("it can be reached").permissions().mode();
            assert_eq!(mode & 0o777, 0o700, "{}", path.display());
        }
        assert!(!restore_access(&launch), "nothing is left to be done");
        assert!(!restore_access(Path::new("/no/such/launch")));
    }

    #[test]
    fn what_a_job_puts_in_the_place_of_its_directory_is_its_own_failure() {
        let jobs = tempfile::tempdir().expect("a directory");
        let path = jobs.path().join("job");
        let prepared = |jobs_dir: &Path| {
            let plan = LaunchPlan {
                job: JobId::new(),
                launch: LaunchId::random(),
                attempt: 2,
                command: vec!["true".into()],
                external_id: None,
                cwd: None,
                env: Vec::new(),
                hide_gpus: false,
                config: None,
                time_limit: None,
                grace: Duration::from_secs(30),
                process: ProcessSpec::default(),
            };
            let limits = Limits { log_max_size: 1 << 20, groups: None, unkillable_after: Duration::from_secs(60) };
            let at = job_directory(jobs_dir, plan.job);
            if path.symlink_metadata().is_ok() {
                fs::rename(&path, &at).expect("it is put there");
            }
            make(jobs_dir, &plan, &User::current(), &limits, &|_| false)
        };
        assert!(prepared(jobs.path()).is_ok(), "nothing is in its place");
        fs::write(&path, "a file").expect("written");
        assert!(matches!(prepared(jobs.path()), Err(PrepareError::Plan(_))), "a file");
        std::os::unix::fs::symlink("/no/such/place", &path).expect("linked");
        assert!(matches!(prepared(jobs.path()), Err(PrepareError::Plan(_))), "a link that leads nowhere");
        std::os::unix::fs::symlink("job", &path).expect("linked");
        assert!(matches!(prepared(jobs.path()), Err(PrepareError::Plan(_))), "a link to itself");
        // What holds for every job is none's failure.
        let file = jobs.path().join("no directory");
        fs::write(&file, "a file").expect("written");
        assert!(matches!(prepared(&file), Err(PrepareError::Directory { .. })));
        let left: Vec<_> =
            fs::read_dir(jobs.path()).expect("it is there").flatten().map(|entry| entry.file_name()).collect();
        assert!(left.iter().all(|name| !name.to_string_lossy().starts_with('.')), "{left:?}");
    }

    #[test]
    fn placeholders_are_filled_in_once_and_other_braces_stay() {
        let placeholders = [("{job_id}", "{attempt}"), ("{attempt}", "3")];
        let cases = [
            ("--id={job_id}", "--id={attempt}"),
            ("{attempt}{attempt}", "33"),
            ("{\"a\": {attempt}}", "{\"a\": 3}"),
            ("{unknown} {", "{unknown} {"),
        ];
        for (word, expected) in cases {
            assert_eq!(substitute(word, &placeholders), expected);
        }
    }
}
