//! Datasets that come with a submission. They are stored before it, and go again unless it comes to a job.
//!
//! Whether it does only the store can say, and nobody may be there to hear it: the client has hung up, or the service was killed.
//! So a dataset that is on its way has a mark, an empty file with the id of its job in `jobs/.incoming/`. It goes when that is
//! settled; what a service finds there at its start is settled then.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use axum::http::StatusCode;
use taxiway_job::JobId;

use super::super::answer::Refused;
use crate::store::Store;

/// Where the marks are. No job's directory has such a name.
const INCOMING: &str = ".incoming";

/// What the file may end in. Trainers choose by it how to read a dataset.
const EXTENSIONS: [&str; 3] = ["json", "jsonl", "txt"];

/// A dataset in the directory of a job that the queue has not heard of. It goes when it is dropped.
pub(super) struct Dataset {
    owner: Owner,
    file: PathBuf,
    was_sent: bool,
}

/// The same once the queue may have heard of the job: only the store can say what becomes of it.
pub(super) struct Sent(Owner);

/// Whose it is.
#[derive(Debug, Clone)]
struct Owner {
    jobs_dir: PathBuf,
    job: JobId,
}

impl Dataset {
    /// Stores `content`, durably, because the job that will be acknowledged needs it. It takes a moment for large ones, in
    /// which this thread of the runtime does nothing else.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub(super) fn store(jobs_dir: &Path, job: JobId, content: &str) -> Result<Self, Refused> {
        let owner = Owner { jobs_dir: jobs_dir.to_owned(), job };
        let file = owner.directory().join(format!("dataset.{}", extension(content)));
        let dataset = Self { owner, file, was_sent: false };
        tokio::task::block_in_place(|| dataset.write(content)).map_err(|error| {
            tracing::error!(%error, dataset = %dataset.file.display(), "a dataset could not be stored");
            let status = match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StatusCode::INSUFFICIENT_STORAGE,
                _ => StatusCode::SERVICE_UNAVAILABLE,
            };
            Refused::new(status, "dataset-not-stored", format!("the dataset could not be stored: {error}"))
        })?;
        Ok(dataset)
    }

    fn write(&self, content: &str) -> io::Result<()> {
        let (jobs_dir, directory) = (&self.owner.jobs_dir, self.owner.directory());
        self.owner.make_mark()?;
        make(&directory)?;
        let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&self.file)?;
        file.write_all(content.as_bytes())?;
        file.sync_all()?;
        sync(&directory)?;
        sync(jobs_dir)
    }

    /// The file.
    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// The queue is about to hear of the job.
    pub(super) fn sent(mut self) -> Sent {
        self.was_sent = true;
        Sent(self.owner.clone())
    }
}

impl Drop for Dataset {
    fn drop(&mut self) {
        if !self.was_sent {
            self.owner.remove();
        }
    }
}

impl Sent {
    /// The job is there.
    pub(super) fn keep(self) {
        self.0.keep();
    }

    /// It was refused, or nobody knows: the store does.
    pub(super) async fn settle(self, store: &Store) {
        self.0.settle(store).await;
    }
}

/// Settles what an earlier service has left, and makes the place for marks. Call it before there are submissions: of the first two at
/// once one would find the place that the other has made and not had written to the disk.
pub(in super::super) async fn settle_incoming(store: &Store, jobs_dir: &Path) {
    let incoming = jobs_dir.join(INCOMING);
    let entries = match std::fs::read_dir(&incoming) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Err(error) = make(&incoming).and_then(|()| sync(jobs_dir)) {
                tracing::warn!(%error, "there is no place for datasets that are on their way yet");
            }
            return;
        }
        Err(error) => return tracing::warn!(%error, "datasets that were on their way cannot be looked at"),
    };
    for job in entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()) {
        Owner { jobs_dir: jobs_dir.to_owned(), job }.settle(store).await;
    }
}

impl Owner {
    fn directory(&self) -> PathBuf {
        self.jobs_dir.join(self.job.to_string())
    }

    fn mark(&self) -> PathBuf {
        self.jobs_dir.join(INCOMING).join(self.job.to_string())
    }

    /// Makes the mark, durably: a power cut must not leave a dataset without it.
    fn make_mark(&self) -> io::Result<()> {
        let incoming = self.jobs_dir.join(INCOMING);
        match File::create_new(self.mark()) {
            // The start could not make it, or somebody has removed it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                make(&incoming)?;
                File::create_new(self.mark())?;
                sync(&self.jobs_dir)?;
            }
            made => drop(made?),
        }
        sync(&incoming)
    }

    async fn settle(&self, store: &Store) {
        // What was sent to the store before this is there after it.
        let found = match store.commit(Vec::new()).await {
            Ok(()) => store.job(self.job).await,
            Err(error) => Err(error),
        };
        match found {
            Ok(Some(_)) => self.keep(),
            Ok(None) => self.remove(),
            Err(error) => {
                tracing::warn!(%error, job = %self.job, "whether a dataset has a job is found out at the next start");
            }
        }
    }

    fn keep(&self) {
        gone(&self.mark(), std::fs::remove_file(self.mark()));
    }

    /// The directory goes with it when nothing else is in there, and the mark last: it stays as long as anything does, for the next
    /// start. It takes a moment, as [`Dataset::store`] does.
    fn remove(&self) {
        tokio::task::block_in_place(|| self.remove_from_disk());
    }

    fn remove_from_disk(&self) {
        let directory = self.directory();
        let mut all = true;
        for extension in EXTENSIONS {
            let file = directory.join(format!("dataset.{extension}"));
            all &= gone(&file, std::fs::remove_file(&file));
        }
        all &= match std::fs::remove_dir(&directory) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => gone(&directory, sync(&directory)),
            left => gone(&directory, left),
        };
        // A power cut must not bring back what has no mark any more.
        if all && gone(&self.jobs_dir, sync(&self.jobs_dir)) {
            self.keep();
        }
    }
}

fn make(directory: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

/// Writes to the disk what is there, and what is not.
fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Whether something is there no more.
fn gone(path: &Path, result: io::Result<()>) -> bool {
    match result {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::NotFound => true,
        Err(error) => {
            tracing::warn!(%error, path = %path.display(), "could not be removed; the next start tries it again");
            false
        }
    }
}

fn extension(content: &str) -> &'static str {
    match content.trim_start().as_bytes().first() {
        Some(b'[') => EXTENSIONS[0],
        Some(b'{') => EXTENSIONS[1],
        _ => EXTENSIONS[2],
    }
}

#[cfg(test)]
mod tests {
    use taxiway_job::Time;

    use super::*;
    use crate::store::{Change, test_new_job};

    struct Place {
        directory: tempfile::TempDir,
        store: Store,
    }

    impl Place {
        fn new() -> Self {
            let directory = tempfile::tempdir().expect("a directory");
            let store = Store::open(&directory.path().join("taxiway.db")).expect("opens");
            Self { directory, store }
        }

        fn jobs_dir(&self) -> PathBuf {
            self.directory.path().join("jobs")
        }

        fn dataset(&self, job: JobId) -> Dataset {
            Dataset::store(&self.jobs_dir(), job, "{\"a\": 1}\n").expect("it is stored")
        }

        /// A job that the store has.
        async fn job(&self) -> JobId {
            let job = crate::store::test_job("a", Time::now());
            let id = job.id;
            let new = Box::new(test_new_job(job));
            self.store.commit(vec![Change::Submit(new)]).await.expect("it is stored");
            id
        }

        fn is_kept(&self, job: JobId) -> bool {
            let kept = self.jobs_dir().join(job.to_string()).join("dataset.jsonl").exists();
            assert_eq!(kept, self.jobs_dir().join(job.to_string()).exists(), "an empty directory is left");
            kept
        }

        /// Jobs whose datasets are on their way.
        fn on_their_way(&self) -> usize {
            std::fs::read_dir(self.jobs_dir().join(INCOMING)).expect("a directory").count()
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_dataset_goes_with_a_refusal() {
        let (place, job) = (Place::new(), JobId::new());
        let dataset = place.dataset(job);
        assert_eq!(std::fs::read_to_string(dataset.file()).expect("a file"), "{\"a\": 1}\n");
        assert_eq!((place.is_kept(job), place.on_their_way()), (true, 1));
        drop(dataset);
        assert_eq!((place.is_kept(job), place.on_their_way()), (false, 0));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn once_its_job_was_sent_the_store_says_what_becomes_of_a_dataset() {
        let (place, refused) = (Place::new(), JobId::new());
        let accepted = place.job().await;
        let told = place.job().await;
        for job in [accepted, refused] {
            place.dataset(job).sent().settle(&place.store).await;
        }
        place.dataset(told).sent().keep();
        assert_eq!([accepted, refused, told].map(|job| place.is_kept(job)), [true, false, true]);
        assert_eq!(place.on_their_way(), 0);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_dataset_that_cannot_be_removed_keeps_its_mark_for_the_next_start() {
        let (place, job) = (Place::new(), JobId::new());
        let dataset = place.dataset(job);
        let (file, aside) = (dataset.file().to_owned(), place.directory.path().join("aside"));
        std::fs::rename(&file, &aside).expect("moved");
        std::fs::create_dir(&file).expect("in its place");
        drop(dataset);
        assert_eq!(place.on_their_way(), 1);
        std::fs::remove_dir(&file).expect("removed");
        std::fs::rename(&aside, &file).expect("moved back");
        settle_incoming(&place.store, &place.jobs_dir()).await;
        assert_eq!((place.is_kept(job), place.on_their_way()), (false, 0));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_a_killed_service_has_left_is_settled_at_the_next_start() {
        let place = Place::new();
        settle_incoming(&place.store, &place.jobs_dir()).await;
        assert_eq!(place.on_their_way(), 0, "the place is there");
        let (accepted, unknown) = (place.job().await, JobId::new());
        // Killed: nothing is dropped, and nobody hears of anything.
        for job in [accepted, unknown] {
            std::mem::forget(place.dataset(job));
        }
        settle_incoming(&place.store, &place.jobs_dir()).await;
        assert_eq!([accepted, unknown].map(|job| place.is_kept(job)), [true, false]);
        assert_eq!(place.on_their_way(), 0);
    }
}
