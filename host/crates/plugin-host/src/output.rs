//! What a plugin logs and prints during one call: kept up to a limit, the rest swallowed, never a trap.

use crate::secret::Secrets;
use crate::view::LogLine;
use bytes::Bytes;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

/// What an entry of the log costs beside its text, so that empty lines are not free.
const ENTRY_COST: usize = 32;

/// The widest line that is passed on; longer ones are cut.
const LINE_LIMIT: usize = 4096;

/// One call's output. Cloned into the streams that the guest writes to.
#[derive(Clone)]
pub struct Output(Arc<Mutex<Kept>>);

struct Kept {
    room: usize,
    swallowed: bool,
    log: Vec<(&'static str, String)>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

/// Which of the two streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Output {
    /// An output that keeps so many bytes.
    pub fn new(limit: usize) -> Output {
        Output(Arc::new(Mutex::new(Kept {
            room: limit,
            swallowed: false,
            log: Vec::new(),
            stdout: Vec::new(),
            stderr: Vec::new(),
        })))
    }

    /// Keeps a log message, if there is room.
    pub fn log(&self, level: &'static str, message: &str) {
        let mut kept = self.lock();
        if kept.room <= ENTRY_COST {
            kept.swallowed = true;
            return;
        }
        let end = message.floor_char_boundary(kept.room - ENTRY_COST);
        kept.swallowed |= end < message.len();
        kept.room -= end + ENTRY_COST;
        kept.log.push((level, message[..end].to_owned()));
    }

    fn print(&self, stream: Stream, bytes: &[u8]) {
        let mut kept = self.lock();
        let taken = bytes.len().min(kept.room);
        kept.swallowed |= taken < bytes.len();
        kept.room -= taken;
        match stream {
            Stream::Stdout => kept.stdout.extend_from_slice(&bytes[..taken]),
            Stream::Stderr => kept.stderr.extend_from_slice(&bytes[..taken]),
        }
    }

    /// Everything kept so far, line by line, without secrets and control characters.
    pub fn lines(&self, secrets: &Secrets) -> Vec<LogLine> {
        let kept = self.lock();
        let mut lines = Vec::new();
        // The streams are redacted as a whole: a secret may come in two writes.
        for (level, message) in &kept.log {
            let message = if kept.swallowed { secrets.redact_cut(message) } else { secrets.redact(message) };
            lines.extend(message.lines().map(|line| LogLine { source: level, text: secrets.safe(line, LINE_LIMIT) }));
        }
        for (source, bytes) in [("stdout", &kept.stdout), ("stderr", &kept.stderr)] {
            let printed = String::from_utf8_lossy(bytes);
            let printed = if kept.swallowed { secrets.redact_cut(&printed) } else { secrets.redact(&printed) };
            lines.extend(printed.lines().map(|line| LogLine { source, text: secrets.safe(line, LINE_LIMIT) }));
        }
        if kept.swallowed {
            lines.push(LogLine { source: "warn", text: "(the plugin wrote more than is kept)".to_owned() });
        }
        lines
    }

    /// This call's standard output or standard error, for WASI.
    pub fn stream(&self, stream: Stream) -> impl StdoutStream + use<> {
        Printed { output: self.clone(), stream }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        // Nothing is half done when a holder panics: every change is one push.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Clone)]
struct Printed {
    output: Output,
    stream: Stream,
}

impl IsTerminal for Printed {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Printed {
    fn async_stream(&self) -> Box<dyn tokio::io::AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

#[async_trait::async_trait]
impl Pollable for Printed {
    async fn ready(&mut self) {}
}

impl OutputStream for Printed {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.output.print(self.stream, &bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        // Always room: what does not fit is swallowed. One pipe buffer at a time.
        Ok(64 << 10)
    }
}

impl tokio::io::AsyncWrite for Printed {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        self.output.print(self.stream, bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_kept_to_its_limit_and_says_so() {
        let output = Output::new(1000);
        for _ in 0..10_000 {
            output.print(Stream::Stdout, b"flood\n");
            output.log("info", "");
        }
        let lines = output.lines(&Secrets::default());
        let kept: usize = lines.iter().map(|line| line.text.len()).sum();
        assert!(kept <= 1100, "{kept}");
        assert_eq!(lines.last().unwrap().text, "(the plugin wrote more than is kept)");
    }

    #[test]
    fn a_secret_printed_in_two_writes_is_redacted() {
        let output = Output::new(1000);
        output.print(Stream::Stderr, b"key=hun");
        output.print(Stream::Stderr, b"ter2\n");
        let secrets = Secrets::new(vec![("K".into(), "hunter2".into())]).unwrap();
        assert_eq!(output.lines(&secrets), [LogLine { source: "stderr", text: "key=[redacted]".into() }]);
    }
}
