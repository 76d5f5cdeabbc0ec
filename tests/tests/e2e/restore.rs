//! A backup that is put back: the database is as it was then, whatever has happened since.

use std::path::{Path, PathBuf};
use std::time::Duration;

use taxiway_tests::processes::Process;
use taxiway_tests::{Bell, Gate, Place, Server, patiently, sh};

async fn backup(server: &Server) -> PathBuf {
    let file = server.place().path().join("backup.db");
    let output = server.cli(&["backup", file.to_str().expect("a path")]).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    file
}

/// Puts a backup in the place of a database that no service has open, as the documentation says.
fn put_back(place: &Place, file: &Path) {
    let database = place.data_dir().join("taxiway.db");
    for more in ["-wal", "-shm"] {
        let path = PathBuf::from(format!("{}{more}", database.display()));
        if path.exists() {
            std::fs::remove_file(path).expect("it can be removed");
        }
    }
    std::fs::copy(file, database).expect("it can be put back");
}

#[tokio::test]
async fn what_a_backup_holds_goes_on_from_there_and_nothing_else_does() {
    let server = Place::new().start().await;
    let mut events = server.events().await;
    let ended = server.submit(sh("exit 3")).await;
    assert_eq!(events.end_of(ended.id()).await, "failed");
    server.post_nothing("/queue/pause").await.expect(200);
    let (first, second) = (server.submit(sh("exit 0")).await, server.submit(sh("exit 0")).await);
    let file = backup(&server).await;
    server.operate(second.id(), "cancel").await.expect(200);
    let later = server.submit(sh("exit 0")).await;

    let place = server.kill().await;
    put_back(&place, &file);
    let server = place.start().await;
    let mut events = server.events().await;
    assert_eq!(server.get("/queue").await.expect(200).json()["mode"], "paused");
    server.get(&format!("/jobs/{}", later.id())).await.expect(404);
    assert_eq!(server.job(ended.id()).await.exit_code(), Some(3));
    assert_eq!(server.job(second.id()).await.position(), Some(2), "its cancel is forgotten too");
    server.post_nothing("/queue/resume").await.expect(200);
    for job in [&first, &second] {
        assert_eq!(events.end_of(job.id()).await, "completed");
    }
}

#[tokio::test]
async fn a_job_that_runs_on_under_a_backup_of_before_its_start_is_not_started_beside_itself() {
    let server = Place::new().start().await;
    server.post_nothing("/queue/pause").await.expect(200);
    let mut gate = Gate::new(server.place().path(), "gate");
    let mut bell = Bell::new(server.place().path(), "bell");
    let job = server.submit(sh(&format!("{}; {}", bell.ring("$$"), gate.wait()))).await;
    let file = backup(&server).await;
    server.post_nothing("/queue/resume").await.expect(200);
    let process = Process::find(bell.pid().await).expect("it waits at its gate");

    let place = server.kill().await;
    put_back(&place, &file);
    let server = place.start().await;
    let mut events = server.events().await;
    assert_eq!(server.job(job.id()).await.state(), "queued", "the backup knows no better");
    let other = server.submit(sh("exit 0")).await;
    server.post_nothing("/queue/resume").await.expect(200);
    patiently("the job to wait for itself", async {
        // No event tells of a reason, so it is asked for again.
        while server.job(job.id()).await.reason() != Some("still_running") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert!(process.is_alive());
    let waiting = server.job(other.id()).await;
    assert_eq!((waiting.state(), waiting.reason()), ("queued", Some("waiting_for_gpu")), "its slot is taken as well");

    // Also the next service finds it.
    let server = server.kill().await.start().await;
    events.resume(&server).await;
    gate.open();
    process.wait();
    let again = bell.pid().await;
    assert_ne!(again, process.pid);
    gate.open();
    for job in [&job, &other] {
        assert_eq!(events.end_of(job.id()).await, "completed");
    }
    assert_eq!(events.story(job.id()), ["queued", "pending", "running", "completed"]);
}
