//! For scale: the same check as a subprocess in Python, and as an HTTP service on loopback.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::service::service_fn;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::process::Stdio;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use wasmtime_wasi_http::io::TokioIo;

const CHECK: &str = r#"
import json, sys
config = json.load(sys.stdin)
batch = config.get("batch_size")
problems = []
if not isinstance(batch, int) or batch > 256:
    problems.append({"path": "/batch_size", "code": "batch-too-large", "message": f"a batch of {batch} is over the limit"})
json.dump(problems, sys.stdout)
"#;

/// One Python process for each call, the configuration on its standard input.
pub async fn python(config: &Value) {
    let mut child = Command::new("python3")
        .args(["-I", "-c", CHECK])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 is there");
    let mut input = child.stdin.take().expect("it is piped");
    input.write_all(config.to_string().as_bytes()).await.expect("it reads");
    drop(input);
    let output = child.wait_with_output().await.expect("it ends");
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).expect("it answers"), json!([]));
}

/// A service in this process, asked over one kept connection.
pub struct Service(SendRequest<Full<Bytes>>);

impl Service {
    pub async fn start() -> Service {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("it is bound");
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.expect("a client");
            stream.set_nodelay(true).expect("TCP");
            let served = hyper::server::conn::http1::Builder::new();
            let _ = served.serve_connection(TokioIo::new(stream), service_fn(check)).await;
        });
        let stream = TcpStream::connect(address).await.expect("it listens");
        stream.set_nodelay(true).expect("TCP");
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("it speaks HTTP");
        tokio::spawn(connection);
        Service(sender)
    }

    pub async fn ask(&mut self, config: &Value) {
        let request = Request::post("/validate")
            .header("host", "localhost")
            .body(Full::new(Bytes::from(config.to_string())))
            .expect("a request");
        self.0.ready().await.expect("it is there");
        let answer = self.0.send_request(request).await.expect("it answers");
        let body = answer.into_body().collect().await.expect("whole").to_bytes();
        assert_eq!(serde_json::from_slice::<Value>(&body).expect("JSON"), json!([]));
    }
}

async fn check(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let config: Value = serde_json::from_slice(&body).unwrap_or_default();
    let problems = match config["batch_size"].as_u64() {
        Some(batch) if batch <= 256 => json!([]),
        _ => json!([{"path": "/batch_size", "code": "batch-too-large"}]),
    };
    Ok(Response::new(Full::new(Bytes::from(problems.to_string()))))
}
