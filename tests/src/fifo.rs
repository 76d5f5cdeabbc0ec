//! Named pipes through which a test and a job wait for each other (fifo(7)).

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use nix::sys::stat::Mode;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::net::unix::pipe;

use crate::patiently;

fn make(directory: &Path, name: &str) -> PathBuf {
    let path = directory.join(name);
    nix::unistd::mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).expect("a named pipe can be made");
    path
}

/// A job waits at a gate until the test lets it through: `read -r _ < GATE`.
#[derive(Debug)]
pub struct Gate {
    path: PathBuf,
    /// Open for both directions, so that opening it waits for nobody.
    pipe: File,
}

impl Gate {
    /// A closed gate in this directory.
    #[must_use]
    pub fn new(directory: &Path, name: &str) -> Self {
        let path = make(directory, name);
        let pipe = OpenOptions::new().read(true).write(true).open(&path).expect("a named pipe opens");
        Self { path, pipe }
    }

    /// Where a job finds it.
    #[must_use]
    pub fn path(&self) -> &str {
        self.path.to_str().expect("a path of ours")
    }

    /// The shell command that waits here.
    #[must_use]
    pub fn wait(&self) -> String {
        format!("read -r _ < '{}'", self.path())
    }

    /// Lets one job through.
    pub fn open(&mut self) {
        self.pipe.write_all(b"go\n").expect("a line fits into the pipe");
    }
}

/// A job tells the test something: `echo TEXT > BELL`.
#[derive(Debug)]
pub struct Bell {
    path: PathBuf,
    lines: Lines<BufReader<pipe::Receiver>>,
}

impl Bell {
    /// A bell in this directory.
    #[must_use]
    pub fn new(directory: &Path, name: &str) -> Self {
        let path = make(directory, name);
        // For both directions, so that it is not over when the first job hangs up.
        let receiver = pipe::OpenOptions::new().read_write(true).open_receiver(&path).expect("a named pipe opens");
        Self { path, lines: BufReader::new(receiver).lines() }
    }

    /// Where a job finds it.
    #[must_use]
    pub fn path(&self) -> &str {
        self.path.to_str().expect("a path of ours")
    }

    /// The shell command that sends `words` here.
    #[must_use]
    pub fn ring(&self, words: &str) -> String {
        format!("echo {words} > '{}'", self.path())
    }

    /// The next line that a job sends.
    pub async fn heard(&mut self) -> String {
        let line = patiently("a job's word", self.lines.next_line()).await.expect("the pipe can be read");
        line.expect("the pipe stays open")
    }

    /// The next line, which is a process id.
    pub async fn pid(&mut self) -> i32 {
        let line = self.heard().await;
        line.trim().parse().unwrap_or_else(|_| panic!("a process id, not {line:?}"))
    }
}
