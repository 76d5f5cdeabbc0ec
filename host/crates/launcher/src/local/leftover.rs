//! Launches of which a directory is there and that no host remembers: it was killed after it had made the directory and before
//! the launch was stored, or after the launch was forgotten and before its directory was removed.

use std::fs;
use std::io;
use std::path::Path;

use taxiway_job::{JobId, LaunchId};

use super::directory::{job_directory, launch_directory};
use super::stranger::holder;
use crate::wire::file;

/// Removes the directories of a job's launches other than the `known` ones. Gives those that stay, since they go on: a shim holds
/// their lock.
///
/// Only for a job that is over and starts nothing any more: none of its unknown launches is being settled by this process then.
///
/// # Errors
/// When the job's directory cannot be read, or what is in there cannot be removed.
pub fn remove_leftovers(jobs_dir: &Path, job: JobId, known: &[LaunchId]) -> io::Result<Vec<LaunchId>> {
    let directory = job_directory(jobs_dir, job);
    match fs::symlink_metadata(&directory) {
        Ok(metadata) if metadata.is_dir() => {}
        // What a job has put in its place leads to what is not its own.
        Ok(_) => return Ok(Vec::new()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    }
    let mut stay = Vec::new();
    for entry in fs::read_dir(&directory)? {
        let entry = entry?;
        let Some(launch) = entry.file_name().to_str().and_then(launch_of).filter(|launch| !known.contains(launch))
        else {
            continue;
        };
        let directory = launch_directory(jobs_dir, job, launch);
        let removed = || -> io::Result<()> {
            if !entry.file_type()?.is_dir() || !was_made_for_a_launch(&directory)? {
                return Ok(());
            }
            match holder(&directory)? {
                Some(_) => stay.push(launch),
                None => fs::remove_dir_all(&directory)?,
            }
            Ok(())
        };
        // Its launcher may be removing it at this moment.
        gone_is_well(removed)?;
    }
    Ok(stay)
}

fn gone_is_well(removed: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    match removed() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// The launch whose directory has this name. A job may give a directory of its own an id in another spelling.
fn launch_of(name: &str) -> Option<LaunchId> {
    name.parse().ok().filter(|launch: &LaunchId| launch.to_string() == name)
}

/// Whether a directory that has a launch's name is a launch's: a job may have made one of its own with such a name. The exit record
/// is there from the beginning but for what is written before it, the configuration.
fn was_made_for_a_launch(directory: &Path) -> io::Result<bool> {
    if fs::symlink_metadata(directory.join(file::EXIT)).is_ok() {
        return Ok(true);
    }
    let is_a_launch_s = |name: &str| matches!(name, file::LOCK | file::LOG) || name.starts_with("config.");
    for entry in fs::read_dir(directory)? {
        if !entry?.file_name().to_str().is_some_and(is_a_launch_s) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_job_has_put_in_the_place_of_its_directory_is_not_followed() {
        let place = tempfile::tempdir().expect("a directory");
        let (job, other, launch) = (JobId::new(), JobId::new(), LaunchId::random());
        let directory = launch_directory(place.path(), other, launch);
        fs::create_dir_all(&directory).expect("a directory");
        std::os::unix::fs::symlink(job_directory(place.path(), other), job_directory(place.path(), job))
            .expect("a link");
        assert_eq!(remove_leftovers(place.path(), job, &[]).expect("nothing is done"), []);
        assert!(directory.exists());
    }
}
