//! Reading server-sent events (WHATWG HTML, 9.2.6), as far as Taxiway writes them.

use bytes::Bytes;
use reqwest::Response;

use crate::api::wire::Heard;

/// Events as they arrive.
pub(super) struct EventStream {
    response: Response,
    parser: Parser,
}

impl EventStream {
    pub(super) fn new(response: Response) -> Self {
        Self { response, parser: Parser::default() }
    }

    /// The next event; none when the service has ended the stream or the connection broke: then it is time to reconnect.
    pub(super) async fn next(&mut self) -> Option<Heard> {
        loop {
            if let Some(data) = self.parser.next() {
                match serde_json::from_str(&data) {
                    Ok(event) => return Some(event),
                    // Of a newer service: nothing that we wait for.
                    Err(error) => tracing::debug!(%error, "an event was not understood"),
                }
                continue;
            }
            let bytes: Option<Bytes> = self.response.chunk().await.ok()?;
            self.parser.feed(&bytes?);
        }
    }
}

/// Takes bytes as they come and gives the data of whole events.
#[derive(Default)]
struct Parser {
    bytes: Vec<u8>,
}

impl Parser {
    fn feed(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The data of the next whole event that has any; comments keep connections alive and have none.
    fn next(&mut self) -> Option<String> {
        while let Some(end) = self.bytes.windows(2).position(|pair| pair == b"\n\n") {
            let block: Vec<u8> = self.bytes.drain(..end + 2).collect();
            let text = String::from_utf8_lossy(&block);
            let data: Vec<&str> = text
                .lines()
                .filter_map(|line| line.strip_prefix("data:"))
                .map(|data| data.strip_prefix(' ').unwrap_or(data))
                .collect();
            if !data.is_empty() {
                return Some(data.join("\n"));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_however_their_bytes_are_cut() {
        let text = ":\n\nid: 1\nevent: job.queued\ndata: {\"a\":\ndata: 1}\n\n: still here\n\nid: 2\ndata:x\n\n";
        let mut parser = Parser::default();
        let mut found = Vec::new();
        for byte in text.as_bytes() {
            parser.feed(&[*byte]);
            found.extend(parser.next());
        }
        assert_eq!(found, ["{\"a\":\n1}", "x"]);
    }
}
