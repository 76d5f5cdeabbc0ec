//! Under systemd: the unit, and being told that the service is ready.

use std::os::unix::net::UnixDatagram;
use std::process::Output;

use taxiway_tests::Place;

fn text(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&both).into_owned()
}

#[tokio::test]
async fn the_units_are_sound() {
    let server = Place::new().start().await;
    for scope in [&["--user"][..], &["--system", "--run-as", "root"]] {
        let output = server.cli(&[&["service", "install", "--print"], scope].concat()).await;
        assert!(output.status.success(), "{}", text(&output));
        let unit = server.place().path().join("taxiway.service");
        std::fs::write(&unit, &output.stdout).expect("a unit");
        let mut verify = tokio::process::Command::new("systemd-analyze");
        verify.args(["verify", "--man=no"]).args(scope.first().filter(|scope| **scope == "--user")).arg(&unit);
        // The user's systemd wants a place for its sockets, which a machine without it does not have.
        verify.env("XDG_RUNTIME_DIR", server.place().path());
        match verify.output().await {
            Ok(found) => {
                let said = text(&found);
                assert!(found.status.success(), "{scope:?}: {said}");
                // What an older systemd does not know it says, and passes over.
                let complaints: Vec<&str> = said
                    .lines()
                    .filter(|line| line.contains("taxiway.service") && !line.contains("DelegateSubgroup"))
                    .collect();
                assert!(complaints.is_empty(), "{scope:?}: {complaints:?}");
            }
            Err(error) => eprintln!("SKIPPED: systemd-analyze cannot be run here: {error}"),
        }
    }
}

#[tokio::test]
async fn a_unit_is_written_and_written_again_and_another_ones_is_left_alone() {
    let server = Place::new().start().await;
    let path = server.place().path().join(".config/systemd/user/taxiway.service");
    let output = server.cli(&["service", "install", "--user"]).await;
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("systemctl --user enable --now taxiway"), "{}", text(&output));
    let unit = std::fs::read_to_string(&path).expect("a unit");
    assert!(unit.contains("KillMode=process") && unit.contains("serve --data-dir"), "{unit}");
    assert!(server.cli(&["service", "install", "--user"]).await.status.success(), "its own is replaced");

    std::fs::write(&path, "[Service]\nExecStart=/bin/true\n").expect("a unit");
    let refused = server.cli(&["service", "install", "--user"]).await;
    assert!(!refused.status.success() && text(&refused).contains("--force"), "{}", text(&refused));
    assert!(std::fs::read_to_string(&path).expect("a unit").contains("/bin/true"));
    assert!(server.cli(&["service", "install", "--user", "--force"]).await.status.success());
    let nobody = server.cli(&["service", "install", "--system", "--run-as", "nobody-of-this-name"]).await;
    assert!(!nobody.status.success() && text(&nobody).contains("useradd"), "{}", text(&nobody));
}

#[tokio::test]
async fn systemd_is_told_when_the_service_is_ready_and_when_it_stops() {
    let place = Place::new();
    let path = place.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("a socket");
    let server = place.variable("NOTIFY_SOCKET", path.to_str().expect("a path")).start().await;
    let mut buffer = [0; 256];
    let mut heard = || {
        let read = socket.recv(&mut buffer).expect("a datagram");
        String::from_utf8_lossy(&buffer[..read]).into_owned()
    };
    let ready = heard();
    assert!(ready.starts_with("READY=1\n") && ready.contains(server.address()), "{ready}");
    server.get("/queue").await.expect(200);
    let mut events = server.events().await;
    let job = server.submit(taxiway_tests::sh("echo ${NOTIFY_SOCKET-none}")).await;
    events.job(job.id(), "completed").await;
    assert_eq!(server.log(job.id()).await, "none\n", "no job can speak for the service");
    server.stop().await;
    assert!(heard().starts_with("STOPPING=1"));
}
