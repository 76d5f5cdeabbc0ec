//! What there is of a job on disk, as far as the service has made it.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use taxiway_job::{JobId, LaunchId};

use crate::store::{EndedJob, RemovedJob};

/// Files that a submission by way of `/api/training` may have left beside the launches.
const DATASETS: [&str; 3] = ["dataset.json", "dataset.jsonl", "dataset.txt"];

fn log(jobs_dir: &Path, job: JobId, launch: LaunchId) -> PathBuf {
    taxiway_launcher::log::path(jobs_dir, job, launch)
}

/// Bytes of all logs of a job. A link that a job has put in the place of its log counts as itself: what it names is not ours.
pub(super) fn log_bytes(jobs_dir: &Path, job: &EndedJob) -> u64 {
    let size = |launch: &LaunchId| {
        std::fs::symlink_metadata(log(jobs_dir, job.id, *launch)).map_or(0, |metadata| metadata.len())
    };
    job.launches.iter().map(size).sum()
}

/// Removes the logs of these jobs. Gives how many there were and their bytes.
pub(super) fn remove_logs(jobs_dir: &Path, jobs: &[EndedJob]) -> (u64, u64) {
    let (mut logs, mut bytes) = (0, 0);
    for job in jobs {
        for launch in &job.launches {
            let path = log(jobs_dir, job.id, *launch);
            let Ok(metadata) = std::fs::symlink_metadata(&path) else { continue };
            if gone(&path, std::fs::remove_file(&path)) {
                logs += 1;
                bytes += metadata.len();
            }
        }
    }
    (logs, bytes)
}

/// Removes what the service has made for these jobs. Gives those of which nothing of it is left, durably.
pub(super) fn remove_jobs(jobs_dir: &Path, jobs: &[RemovedJob]) -> Vec<JobId> {
    let gone: Vec<JobId> = jobs.iter().filter(|job| remove_job(jobs_dir, job)).map(|job| job.id).collect();
    match File::open(jobs_dir).and_then(|directory| directory.sync_all()) {
        Ok(()) => gone,
        // There never was one.
        Err(error) if error.kind() == io::ErrorKind::NotFound => gone,
        Err(error) => {
            tracing::warn!(%error, path = %jobs_dir.display(), "could not be written to the disk");
            Vec::new()
        }
    }
}

/// Whether nothing is left of what the service has made for a job. Its directory stays when the job has left something of its own
/// there.
fn remove_job(jobs_dir: &Path, job: &RemovedJob) -> bool {
    let directory = jobs_dir.join(job.id.to_string());
    let mut all = true;
    for launch in &job.launches {
        let path = log(jobs_dir, job.id, *launch);
        if let Some(directory) = path.parent() {
            all &= gone(directory, std::fs::remove_dir_all(directory));
        }
    }
    match taxiway_launcher::remove_leftovers(jobs_dir, job.id, &job.launches) {
        Ok(go_on) => {
            for launch in &go_on {
                tracing::warn!(job = %job.id, %launch, "a launch of a job that was removed goes on; its directory stays until it is over");
            }
            all &= go_on.is_empty();
        }
        Err(error) => all &= gone(&directory, Err(error)),
    }
    for dataset in DATASETS {
        let path = directory.join(dataset);
        all &= gone(&path, std::fs::remove_file(&path));
    }
    match std::fs::remove_dir(&directory) {
        // What is left is its user's. What has gone from it must not come back with a power cut.
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
            all && gone(&directory, File::open(&directory).and_then(|directory| directory.sync_all()))
        }
        left => gone(&directory, left) && all,
    }
}

/// Whether something is there no more.
fn gone(path: &Path, result: io::Result<()>) -> bool {
    match result {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::NotFound => true,
        Err(error) => {
            tracing::warn!(%error, path = %path.display(), "could not be removed; the next start and `taxiway gc` try it again");
            false
        }
    }
}
