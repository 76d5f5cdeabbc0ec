//! The mode in which the queue starts (`queue.startup`).

use taxiway_tests::{Place, Server};

async fn mode(server: &Server) -> String {
    server.get("/queue").await.expect(200).json()["mode"].as_str().expect("a mode").to_owned()
}

fn startup(mode: &str) -> String {
    format!("[queue]\nstartup = \"{mode}\"\n")
}

#[tokio::test]
async fn the_queue_starts_as_it_was_last_and_a_mode_that_the_configuration_chose_counts_as_such() {
    let server = Place::new().config(&startup("last")).start().await;
    assert_eq!(mode(&server).await, "run");
    server.post_nothing("/queue/pause").await.expect(200);
    let server = server.kill().await.start().await;
    assert_eq!(mode(&server).await, "paused");

    let server = server.kill().await.config(&startup("run")).start().await;
    assert_eq!(mode(&server).await, "run");
    let mut events = server.events().await;
    events.wait_for(|event| event.kind == "queue.run").await;
    let server = server.kill().await.config(&startup("last")).start().await;
    assert_eq!(mode(&server).await, "run", "that is what it was last");

    let server = server.kill().await.config(&startup("paused")).start().await;
    assert_eq!(mode(&server).await, "paused");
    let trail = server.get("/audit?limit=1").await.expect(200).json();
    assert_eq!((&trail["items"][0]["action"], &trail["items"][0]["actor"]), (&"queue pause".into(), &"startup".into()));
    let server = server.kill().await.config(&startup("last")).start().await;
    assert_eq!(mode(&server).await, "paused");
}
