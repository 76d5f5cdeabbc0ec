//! Launches of which a directory is there and that no host remembers: it was killed after it had made the directory and before
//! the launch was stored, or after the launch was forgotten and before its directory was removed.

use std::fs;
use std::io;
use std::path::Path;

use taxiway_job::{JobId, LaunchId};

use super::directory::{job_directory, launch_directory, launches_in, remove_all};
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
    for launch in launches_in(&directory)?.into_iter().filter(|launch| !known.contains(launch)) {
        let directory = launch_directory(jobs_dir, job, launch);
        let removed = || -> io::Result<()> {
            if !fs::symlink_metadata(&directory)?.is_dir() || !was_made_for_a_launch(&directory)? {
                return Ok(());
            }
            match holder(&directory)? {
                Some(_) => stay.push(launch),
                None => remove_all(&directory)?,
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

/// Whether a directory that has a launch's name is a launch's: a job may have made one of its own with such a name. The exit record is
/// there from the beginning to the end, so that a launch's directory without one is empty.
fn was_made_for_a_launch(directory: &Path) -> io::Result<bool> {
    Ok(fs::symlink_metadata(directory.join(file::EXIT)).is_ok() || fs::read_dir(directory)?.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_job_has_given_the_name_of_a_launch_stays() {
        let place = tempfile::tempdir().expect("a directory");
        let job = JobId::new();
        let of_the_job = |name: &str| job_directory(place.path(), job).join(name);
        let (run, hyphens) = (LaunchId::random().to_string(), uuid_with_hyphens(LaunchId::random()));
        for name in [&run, &hyphens] {
            fs::create_dir_all(of_the_job(name)).expect("a directory");
            for file in ["config.yaml", file::LOG, file::LOCK] {
                fs::write(of_the_job(name).join(file), "its own").expect("a file");
            }
        }
        let (link, file) = (of_the_job(&LaunchId::random().to_string()), of_the_job(&LaunchId::random().to_string()));
        std::os::unix::fs::symlink(of_the_job(&run), &link).expect("a link");
        fs::write(&file, "its own").expect("a file");
        // The directories of two launches, one of them as it is for an instant at its beginning and at its end.
        let (launch, bare) = (LaunchId::random(), LaunchId::random());
        for launch in [launch, bare] {
            fs::create_dir(launch_directory(place.path(), job, launch)).expect("a directory");
        }
        for file in [file::EXIT, "config.json", file::LOG] {
            fs::write(launch_directory(place.path(), job, launch).join(file), "").expect("a file");
        }
        assert_eq!(remove_leftovers(place.path(), job, &[]).expect("it is done"), []);
        let mut left: Vec<_> = fs::read_dir(job_directory(place.path(), job))
            .expect("a directory")
            .map(|entry| entry.expect("an entry").path())
            .collect();
        let mut own = vec![of_the_job(&run), of_the_job(&hyphens), link, file];
        left.sort_unstable();
        own.sort_unstable();
        assert_eq!(left, own);
        assert_eq!(fs::read_dir(of_the_job(&run)).expect("a directory").count(), 3);
    }

    /// The same id as other programs write it.
    fn uuid_with_hyphens(launch: LaunchId) -> String {
        let text = launch.to_string();
        let parts = [&text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..]];
        parts.join("-")
    }

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
