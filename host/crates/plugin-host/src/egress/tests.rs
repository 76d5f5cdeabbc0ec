use super::*;
use http_body_util::{Empty, Full};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// A server on loopback that answers every request alike, and tells how many it got.
async fn server(answer: &'static [u8]) -> (u16, tokio::sync::mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    // As many as one test sends.
    let (seen, requests) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let seen = seen.clone();
            tokio::spawn(async move {
                let mut head = vec![0; 64 << 10];
                let size = stream.read(&mut head).await.unwrap_or(0);
                let _ = seen.send(String::from_utf8_lossy(&head[..size]).into_owned());
                let _ = stream.write_all(answer).await;
                let _ = stream.shutdown().await;
            });
        }
    });
    (port, requests)
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok";

struct Grant<'a> {
    hosts: &'a [String],
    private: &'a [&'a str],
    dry_run: bool,
    limits: Limits,
}

impl<'a> Grant<'a> {
    fn of(hosts: &'a [String], private: &'a [&'a str]) -> Grant<'a> {
        let limits = Limits { http_connect_timeout: Duration::from_secs(10), ..Limits::default() };
        Grant { hosts, private, dry_run: false, limits }
    }

    fn egress(&self) -> (Egress, Arc<Trace>) {
        let trace = Arc::new(Trace::new(&self.limits));
        let policy = Policy {
            plugin: "tested".into(),
            hosts: self.hosts.iter().map(|host| host.parse().unwrap()).collect(),
            allow_private: self.private.iter().map(|network| network.parse().unwrap()).collect(),
            limits: Arc::new(self.limits.clone()),
            secrets: Arc::new(Secrets::new(vec![("K".into(), "hunter2hunter2".into())]).unwrap()),
            tls: Arc::new(Tls::new(None).unwrap()),
        };
        (Egress::new(Arc::new(policy), self.dry_run, trace.clone()), trace)
    }

    async fn ask(&self, method: &str, url: &str) -> Result<(u16, Bytes), Error> {
        ask(&mut self.egress().0, method, url, Bytes::new()).await
    }
}

async fn ask(egress: &mut Egress, method: &str, url: &str, body: Bytes) -> Result<(u16, Bytes), Error> {
    let body = if body.is_empty() {
        Empty::new().map_err(|never| match never {}).boxed_unsync()
    } else {
        Full::new(body).map_err(|never| match never {}).boxed_unsync()
    };
    let request = Request::builder().method(method).uri(url).header("host", "as-asked").body(body).unwrap();
    let sent = egress.send_request(request, None, Box::new(async { Ok(()) }));
    let (answer, done) = Pin::from(sent).await?;
    let done = tokio::spawn(Pin::from(done));
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await?.to_bytes();
    drop(done);
    Ok((status, body))
}

fn is_denied(result: &Result<(u16, Bytes), Error>) -> bool {
    matches!(result, Err(Error::HttpRequestDenied))
}

#[tokio::test]
async fn a_granted_host_is_reached_and_nothing_else() {
    let (port, mut requests) = server(OK).await;
    let hosts = [format!("http://127.0.0.1:{port}")];
    let grant = Grant::of(&hosts, &["127.0.0.1/32"]);
    let answer = grant.ask("GET", &format!("http://127.0.0.1:{port}/path?q=1")).await.unwrap();
    assert_eq!(answer, (200, Bytes::from_static(b"ok")));
    assert!(requests.recv().await.unwrap().starts_with("GET /path?q=1 HTTP/1.1"));

    for elsewhere in [
        format!("http://localhost:{port}/"),
        format!("http://127.0.0.2:{port}/"),
        format!("http://[::ffff:127.0.0.1]:{port}/"),
        format!("http://user@127.0.0.1:{port}/"),
        format!("https://127.0.0.1:{port}/"),
        "http://127.0.0.1/".to_owned(),
        "http://169.254.169.254/latest/meta-data".to_owned(),
        format!("ftp://127.0.0.1:{port}/"),
        format!("http://127.1:{port}/"),
        format!("http://2130706433:{port}/"),
    ] {
        assert!(is_denied(&grant.ask("GET", &elsewhere).await), "{elsewhere}");
    }
    assert!(requests.try_recv().is_err());
}

#[tokio::test]
async fn a_name_or_address_that_points_inside_is_refused() {
    let (port, mut requests) = server(OK).await;
    for host in [
        "localhost",
        "127.0.0.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "169.254.169.254",
        "10.0.0.1",
        "[64:ff9b::7f00:1]",
        "0.0.0.0",
    ] {
        let hosts = [format!("http://{host}:{port}")];
        let grant = Grant::of(&hosts, &[]);
        let (mut egress, trace) = grant.egress();
        let result = ask(&mut egress, "GET", &format!("http://{host}:{port}/"), Bytes::new()).await;
        assert!(is_denied(&result), "{host}: {result:?}");
        assert!(trace.denied().unwrap().contains("allow_private"), "{host}");
    }
    // Numbers that only the resolver takes for an address.
    for host in ["2130706433", "0x7f000001", "127.1"] {
        let hosts = [format!("http://{host}:{port}")];
        let grant = Grant::of(&hosts, &[]);
        assert!(grant.ask("GET", &format!("http://{host}:{port}/")).await.is_err(), "{host}");
    }
    assert!(requests.try_recv().is_err());
}

#[test]
fn of_a_names_addresses_only_public_and_allowed_ones_are_used() {
    let found = |addresses: &[&str]| -> Vec<SocketAddr> {
        addresses.iter().map(|ip| SocketAddr::new(ip.parse().unwrap(), 443)).collect()
    };
    let private: Vec<Network> = vec!["10.1.0.0/16".parse().unwrap()];
    let through = |addresses: &[&str]| permitted(&private, found(addresses).into_iter());
    // What a DNS server may answer for the name of a granted host.
    for inside in ["127.0.0.1", "169.254.169.254", "::1", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "fd00::1"] {
        let why = through(&[inside]).unwrap_err().unwrap();
        assert!(why.contains("allow_private"), "{inside}: {why}");
    }
    assert_eq!(through(&["127.0.0.1", "1.1.1.1", "169.254.169.254"]), Ok(found(&["1.1.1.1"])));
    assert_eq!(through(&["10.1.2.3", "10.2.2.3"]), Ok(found(&["10.1.2.3"])));
    assert_eq!(through(&[]), Err(None));
}

#[tokio::test]
async fn a_redirect_is_handed_to_the_guest_and_its_target_meets_the_gates() {
    let (port, _requests) = server(
        b"HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
    )
    .await;
    let hosts = [format!("http://127.0.0.1:{port}")];
    let grant = Grant::of(&hosts, &["127.0.0.0/8"]);
    assert_eq!(grant.ask("GET", &format!("http://127.0.0.1:{port}/")).await.unwrap().0, 302);
    assert!(is_denied(&grant.ask("GET", "http://169.254.169.254/").await));
}

#[tokio::test]
async fn in_a_dry_run_only_get_and_head_leave() {
    let (port, mut requests) = server(OK).await;
    let hosts = [format!("http://127.0.0.1:{port}")];
    let grant = Grant { dry_run: true, ..Grant::of(&hosts, &["127.0.0.1"]) };
    let url = format!("http://127.0.0.1:{port}/");
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "CONNECT", "PURGE"] {
        assert!(is_denied(&grant.ask(method, &url).await), "{method}");
    }
    assert!(requests.try_recv().is_err());
    assert_eq!(grant.ask("GET", &url).await.unwrap().0, 200);
}

#[tokio::test]
async fn requests_of_one_call_are_counted() {
    let (port, _requests) = server(OK).await;
    let hosts = [format!("http://127.0.0.1:{port}")];
    let grant = Grant { limits: Limits { http_requests: 2, ..Limits::default() }, ..Grant::of(&hosts, &["127.0.0.1"]) };
    let (mut egress, trace) = grant.egress();
    let url = format!("http://127.0.0.1:{port}/");
    ask(&mut egress, "GET", &url, Bytes::new()).await.unwrap();
    ask(&mut egress, "GET", &url, Bytes::new()).await.unwrap();
    assert!(is_denied(&ask(&mut egress, "GET", &url, Bytes::new()).await));
    assert!(trace.denied().unwrap().contains("more than 2 requests"));
}

#[tokio::test]
async fn bodies_and_heads_are_bounded() {
    let (port, _requests) = server(OK).await;
    let hosts = [format!("http://127.0.0.1:{port}")];
    let url = format!("http://127.0.0.1:{port}/");
    let limited = Limits { http_request_body: 10, http_response_body: 1, ..Limits::default() };
    let grant = Grant { limits: limited, ..Grant::of(&hosts, &["127.0.0.1"]) };
    let sent = ask(&mut grant.egress().0, "POST", &url, Bytes::from_static(&[b'x'; 11])).await;
    assert!(matches!(sent, Err(Error::HttpRequestBodySize(Some(10)))), "{sent:?}");
    let got = grant.ask("GET", &url).await;
    assert!(matches!(got, Err(Error::HttpResponseBodySize(Some(1)))), "{got:?}");

    let long: &'static [u8] =
        Box::leak(format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(100_000)).into_bytes().into_boxed_slice());
    let (port, _requests) = server(long).await;
    let hosts = [format!("http://127.0.0.1:{port}")];
    let grant = Grant::of(&hosts, &["127.0.0.1"]);
    let got = grant.ask("GET", &format!("http://127.0.0.1:{port}/")).await;
    assert!(matches!(got, Err(Error::HttpResponseHeaderSectionSize(_))), "{got:?}");
}

#[tokio::test]
async fn an_answer_that_never_comes_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let hosts = [format!("http://127.0.0.1:{port}"), format!("https://127.0.0.1:{port}")];
    let limits = Limits {
        http_timeout: Duration::from_millis(50),
        http_connect_timeout: Duration::from_millis(50),
        ..Limits::default()
    };
    let grant = Grant { limits, ..Grant::of(&hosts, &["127.0.0.1"]) };
    let got = grant.ask("GET", &format!("http://127.0.0.1:{port}/")).await;
    assert!(matches!(got, Err(Error::ConnectionReadTimeout)), "{got:?}");
}

#[tokio::test]
async fn a_handshake_that_never_comes_is_given_up_at_the_time_to_connect() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let hosts = [format!("https://127.0.0.1:{port}")];
    let limits = Limits { http_connect_timeout: Duration::from_millis(50), ..Limits::default() };
    let grant = Grant { limits, ..Grant::of(&hosts, &["127.0.0.1"]) };
    let got = grant.ask("GET", &format!("https://127.0.0.1:{port}/")).await;
    assert!(matches!(got, Err(Error::ConnectionTimeout)), "{got:?}");
}

#[tokio::test]
async fn an_answer_that_drips_for_ever_ends_at_the_time_of_the_whole_request() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n").await.unwrap();
        // Until the other side has had enough.
        while stream.write_all(b".").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let hosts = [format!("http://127.0.0.1:{port}")];
    let limits = Limits { http_timeout: Duration::from_millis(200), ..Limits::default() };
    let grant = Grant { limits, ..Grant::of(&hosts, &["127.0.0.1"]) };
    let got = grant.ask("GET", &format!("http://127.0.0.1:{port}/")).await;
    assert!(matches!(got, Err(Error::HttpResponseTimeout)), "{got:?}");
}

#[test]
fn a_shown_url_has_neither_its_query_nor_a_secret() {
    let secrets = Secrets::new(vec![("K".into(), "hunter2hunter2".into())]).unwrap();
    let uri = "https://example.com/hooks/hunter2hunter2?key=1".parse().unwrap();
    assert_eq!(shown_url(&uri, &secrets), "https://example.com/hooks/[redacted]");
}

/// A TLS server on loopback with a certificate that the platform does not trust.
async fn tls_server() -> u16 {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let certificate = CertificateDer::from_pem_slice(include_bytes!("testdata/server.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_slice(include_bytes!("testdata/server-key.pem")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut head = [0; 4096];
            let _ = stream.read(&mut head).await;
            let _ = stream.write_all(OK).await;
            let _ = stream.shutdown().await;
        }
    });
    port
}

#[tokio::test]
async fn a_ca_file_is_trusted_in_place_of_the_platform() {
    let port = tls_server().await;
    let hosts = [format!("https://localhost:{port}")];
    let grant = Grant::of(&hosts, &["127.0.0.1", "::1"]);
    let url = format!("https://localhost:{port}/");
    let stranger = grant.ask("GET", &url).await;
    assert!(matches!(stranger, Err(Error::Tls(_) | Error::ConfigurationError)), "{stranger:?}");

    let ca_file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/egress/testdata/root.pem");
    let (_, trace) = grant.egress();
    let policy = Policy {
        plugin: "tested".into(),
        hosts: hosts.iter().map(|host| host.parse().unwrap()).collect(),
        allow_private: vec!["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()],
        limits: Arc::new(Limits::default()),
        secrets: Arc::default(),
        tls: Arc::new(Tls::new(Some(&ca_file)).unwrap()),
    };
    let mut egress = Egress::new(Arc::new(policy), false, trace);
    assert_eq!(ask(&mut egress, "GET", &url, Bytes::new()).await.unwrap().0, 200);
}

#[test]
fn a_ca_file_without_a_certificate_is_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    assert!(Tls::new(Some(file.path())).err().unwrap().to_string().contains("no usable certificate"));
    assert!(Tls::new(Some(std::path::Path::new("/nonexistent"))).is_err());
}

/// This thread's.
fn niceness() -> libc::c_int {
    // SAFETY: getpriority takes plain numbers and only reads one.
    unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }
}

#[test]
fn a_busy_guest_looks_names_up_on_threads_of_the_usual_priority() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).max_blocking_threads(1).enable_all().build();
    let (runtime, usual) = (runtime.unwrap(), niceness());
    let handle = runtime.handle().clone();
    let busy = std::thread::spawn(move || {
        // SAFETY: setpriority takes plain numbers and changes nothing but this thread's niceness.
        unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, usual + 5) };
        // Whatever comes of it.
        let _ = handle.block_on(addresses_of("localhost".into(), 80));
        niceness()
    });
    assert_eq!(busy.join().unwrap(), usual + 5);
    // There is no other thread to do this.
    assert_eq!(runtime.block_on(runtime.spawn_blocking(niceness)).unwrap(), usual);
}
