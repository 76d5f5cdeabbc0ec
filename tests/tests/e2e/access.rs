//! Who may ask (DESIGN §9).

use std::time::Duration;

use http::Method;
use serde_json::json;
use sha2::{Digest, Sha256};
use taxiway_tests::{ANY_PORT, Place, Server, sh, start_refused};

#[tokio::test]
async fn without_a_token_or_with_a_wrong_one_nothing_is_answered() {
    let server = Place::new().start().await;
    let token = server.place().token();
    let wrong = format!("{}x", &token[..token.len() - 1]);
    for client in [server.with_token(None), server.with_token(Some("")), server.with_token(Some(&wrong))] {
        for path in ["/jobs", "/queue", "/events", "/plugins", "/jobs/01937c3e-8f00-7abc-8def-0123456789ab/log"] {
            let answer = client.get(path).await.expect(401);
            assert_eq!(answer.header("www-authenticate"), "Bearer");
            assert_eq!(answer.problem()["code"], "unauthorized");
        }
        client.post("/jobs", &sh("exit 0")).await.expect(401);
        client.post_nothing("/queue/pause").await.expect(401);
        client.request(Method::GET, "/api/training/queue").send().await.expect(401);
    }
    let basic = server.with_token(None);
    let basic = basic.request(Method::GET, "/api/v1/jobs").header("authorization", &format!("Basic {token}"));
    basic.send().await.expect(401);
    assert_eq!(server.jobs().await, []);
    assert_eq!(server.get("/queue").await.expect(200).json()["mode"], "run");
}

#[tokio::test]
async fn probes_are_open_to_everybody() {
    let server = Place::new().start().await;
    let client = server.with_token(None);
    // Waits until it is known which plugins there are: only then is it ready.
    server.post("/jobs?dry_run=true", &sh("exit 0")).await.expect(200);
    for path in ["/healthz", "/readyz"] {
        let answer = client.request(Method::GET, path).header("host", "probe.example").send().await.expect(200);
        assert_eq!(answer.json()["status"], "ok");
    }
    assert_eq!(client.request(Method::GET, "/health").send().await.expect(200).json()["status"], "healthy");
    let document = client.request(Method::GET, "/openapi.json").send().await.expect(200).json();
    assert!(document["openapi"].as_str().is_some_and(|version| version.starts_with("3.1")));
    assert!(document["paths"]["/api/v1/jobs"]["post"].is_object());
}

#[tokio::test]
async fn a_request_under_a_name_that_is_not_ours_is_refused() {
    let server = Place::new().config("[server]\nallowed_hosts = [\"lab.example\"]\n").start().await;
    for host in ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "evil.example:8294"] {
        let answer = server.request(Method::GET, "/api/v1/jobs").header("host", host).send().await;
        assert_eq!(answer.expect(421).problem()["code"], "unknown-host", "{host}");
    }
    for host in ["localhost:1", "127.0.0.1", "[::1]:8294", "LAB.example:443"] {
        server.request(Method::GET, "/api/v1/jobs").header("host", host).send().await.expect(200);
    }
}

#[tokio::test]
async fn a_page_of_another_site_changes_nothing() {
    // Without auth the browser's word is all there is.
    let place = Place::new();
    let server = place.start_with(&["--no-auth"]).await;
    let client = server.with_token(None);
    let own = format!("http://{}", server.address());
    let post = || client.request(Method::POST, "/api/v1/jobs").json(&sh("exit 0"));
    for (header, value) in [("origin", "http://evil.example"), ("origin", "null"), ("sec-fetch-site", "cross-site")] {
        assert_eq!(post().header(header, value).send().await.expect(403).problem()["code"], "cross-origin", "{value}");
    }
    assert_eq!(server.jobs().await, []);
    post().header("origin", &own).header("sec-fetch-site", "same-origin").send().await.expect(201);
    post().send().await.expect(201);

    // A valid token proves that no page sent it.
    let server = Place::new().start().await;
    let post = server.request(Method::POST, "/api/v1/jobs").json(&sh("exit 0"));
    post.header("origin", "http://evil.example").send().await.expect(201);
}

#[tokio::test]
async fn the_unix_socket_needs_no_token_and_knows_its_caller() {
    let server = Place::new().start().await;
    let client = server.unix_client();
    let answer = client.post("/jobs", &sh("exit 0")).await.expect(201).job();
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).expect("a user database").expect("an entry").name;
    assert_eq!(answer.json["submitted_by"], user);
    assert_eq!(server.submit(sh("exit 0")).await.json["submitted_by"], "admin");
    client.with_token(Some("wrong")).get("/jobs").await.expect(401);
}

#[tokio::test]
async fn the_unix_socket_works_below_a_path_longer_than_an_address_can_be() {
    let deep = "deep/".repeat(40) + "data";
    let server = Place::with_data_dir(&deep).start().await;
    assert!(server.place().data_dir().as_os_str().len() > 200);
    server.unix_client().get("/queue").await.expect(200);
    let output = server.cli(&["ls", "--json"]).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut events = server.events().await;
    let job = server.submit(sh("exit 0")).await;
    assert_eq!(events.end_of(job.id()).await, "completed", "the shims' sockets are there too");
}

#[tokio::test]
async fn an_address_that_others_can_reach_needs_a_proxy_and_a_token() {
    for arguments in [&[][..], &["--no-auth"]] {
        let refusal = start_refused(&Place::new(), "0.0.0.0:0", arguments).await;
        assert!(refusal.contains("0.0.0.0"), "{refusal}");
    }
}

#[tokio::test]
async fn a_mistyped_key_of_the_configuration_is_refused_with_file_line_and_what_was_meant() {
    let place = Place::new().config("[server]\n\nlissten = \"127.0.0.1:1\"\n");
    let refusal = start_refused(&place, ANY_PORT, &[]).await;
    for part in ["taxiway.toml", "3", "lissten", "listen"] {
        assert!(refusal.contains(part), "{part}: {refusal}");
    }
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let server = Place::new().start().await;
    for path in ["/jobs/nonsense", "/jobs/01937c3e-8f00-7abc-8def-0123456789ab", "/nothing"] {
        assert_eq!(server.get(path).await.expect(404).problem()["code"], "not-found");
    }
    let answer = server.request(Method::DELETE, "/api/v1/queue").send().await.expect(405);
    assert_eq!(answer.problem()["code"], json!("method-not-allowed"));
}

/// A token of this scope, where the service keeps the hashes of its tokens.
fn token_of_scope(server: &Server, scope: &str) -> String {
    let token = format!("a token of scope {scope} for tests");
    let database = rusqlite::Connection::open(server.place().data_dir().join("taxiway.db")).expect("a database");
    database.busy_timeout(Duration::from_secs(60)).expect("it waits for the service's own writes");
    let hash: [u8; 32] = Sha256::digest(token.as_bytes()).into();
    database
        .execute(
            "INSERT INTO tokens (sha256, name, scope, created_at) VALUES (?1, ?2, ?2, 0)",
            rusqlite::params![hash, scope],
        )
        .expect("it is kept");
    token
}

const PROFILE: &str = "[profiles.train]\ncommand = [\"sh\", \"-c\", \"echo by profile\"]\n";

#[tokio::test]
async fn the_scope_submit_runs_what_profiles_say_and_nothing_else() {
    let server = Place::new().config(PROFILE).start().await;
    let client = server.with_token(Some(&token_of_scope(&server, "submit")));
    let both = json!({"profile": "train", "command": ["id"]});
    for refused in [sh("id"), both.clone()] {
        assert_eq!(client.post("/jobs", &refused).await.expect(403).problem()["code"], "command-not-allowed");
        assert_eq!(
            client.post("/jobs?dry_run=true", &refused).await.expect(403).problem()["code"],
            "command-not-allowed"
        );
    }
    let batch = client.post("/jobs/batch", &json!([both, {"profile": "train", "hold": true}])).await.expect(200).json();
    let statuses: Vec<_> = batch["items"].as_array().expect("items").iter().map(|item| &item["status"]).collect();
    assert_eq!(statuses, [403, 201]);
    let jobs = server.jobs().await;
    assert_eq!(jobs.iter().map(|job| job.json["submitted_by"].as_str()).collect::<Vec<_>>(), [Some("submit")]);
    let path = format!("/jobs/{}", jobs[0].id());
    let problem = client.patch(&path, &json!({"command": ["id"]})).await.expect(403).problem();
    assert_eq!(problem["code"], "command-not-allowed");
    client.patch(&path, &json!({"priority": 1})).await.expect(200);
    let mut events = server.events().await;
    client.post_nothing(&format!("{path}/release")).await.expect(200);
    assert_eq!(events.end_of(jobs[0].id()).await, "completed");
    assert_eq!(server.log(jobs[0].id()).await, "by profile\n");
}

#[tokio::test]
async fn where_commands_are_allowed_the_scope_submit_runs_its_own() {
    let config = format!("[server]\nallow_commands = true\n{PROFILE}");
    let server = Place::new().config(&config).start().await;
    let client = server.with_token(Some(&token_of_scope(&server, "submit")));
    let mut held = sh("echo its own");
    held["hold"] = true.into();
    let job = client.post("/jobs", &held).await.expect(201).job();
    let path = format!("/jobs/{}", job.id());
    client.patch(&path, &json!({"command": ["sh", "-c", "echo changed"]})).await.expect(200);
    let mut events = server.events().await;
    client.post_nothing(&format!("{path}/release")).await.expect(200);
    assert_eq!(events.end_of(job.id()).await, "completed");
    assert_eq!(server.log(job.id()).await, "changed\n");
    // The rest of its scope is as it was.
    let other = server.submit(json!({"profile": "train", "hold": true})).await;
    client.patch(&format!("/jobs/{}", other.id()), &json!({"priority": 1})).await.expect(403);
    client.post_nothing("/queue/pause").await.expect(403);
    // And so is that of `read`.
    let reader = server.with_token(Some(&token_of_scope(&server, "read")));
    reader.post("/jobs", &sh("id")).await.expect(403);
    reader.get("/jobs").await.expect(200);
}
