//! `make demo`, which is the first thing that a new user runs.

use std::path::Path;

use tokio::process::Command;

#[tokio::test]
async fn the_demo_shows_the_whole_story() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/demo.py");
    // It gives up by itself when something does not come, and says what.
    let output = Command::new("python3")
        .arg(script)
        .arg("--taxiway")
        .arg(taxiway_tests::program())
        .output()
        .await
        .expect("python3 can be executed");
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{told}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(told.contains("All of it happened.") && !told.contains("FAIL"), "{told}");
}
