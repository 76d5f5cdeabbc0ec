//! Why a launch failed: its exit record, the kernel's record and the last lines of its log, with the line that shows it.

mod kernel_log;

use taxiway_job::{Failure, FailureClass};

use self::kernel_log::Killed;
use crate::record::{ExitRecord, Status, StoppedBy};

/// How many bytes of the end of the log [`classify`] wants.
pub const TAIL_BYTES: usize = 64 << 10;

/// How many lines from the end are looked at. What a program says when it dies is near the end; the same words further up are
/// usually of something that it survived.
const LINES_MAX: usize = 200;
/// An evidence line longer than this is cut.
const EVIDENCE_MAX_CHARS: usize = 500;

/// What a line that holds these words, in lower case, says.
const SIGNS: &[(FailureClass, &[&str])] = &[
    (FailureClass::CudaOom, &["cuda out of memory"]),
    (FailureClass::CudaOom, &["cuda error: out of memory"]),
    (FailureClass::CudaOom, &["cuda_error_out_of_memory"]),
    (FailureClass::CudaOom, &["cudaerrormemoryallocation"]),
    (FailureClass::CudaOom, &["cudnn_status_alloc_failed"]),
    (FailureClass::CudaOom, &["cublas_status_alloc_failed"]),
    (FailureClass::CudaOom, &["hip out of memory"]),
    (FailureClass::CudaOom, &["resource_exhausted", "out of memory"]),
    (FailureClass::GpuLost, &["gpu is lost"]),
    (FailureClass::GpuLost, &["fallen off the bus"]),
    (FailureClass::GpuLost, &["uncorrectable ecc error"]),
    (FailureClass::DiskFull, &["no space left on device"]),
    (FailureClass::DiskFull, &["disk quota exceeded"]),
    (FailureClass::HostOom, &["defaultcpuallocator", "can't allocate memory"]),
    (FailureClass::HostOom, &["cannot allocate memory"]),
    (FailureClass::HostOom, &["std::bad_alloc"]),
];

/// Why the launch failed; none when its command ended with status 0 by itself.
///
/// `log_tail` are the last [`TAIL_BYTES`] of its log. A job that the host stopped did not fail, whatever this says: where it was
/// to go then is the host's to know.
#[must_use]
pub fn classify(record: &ExitRecord, log_tail: &[u8]) -> Option<Failure> {
    classify_by(record, log_tail, kernel_log::ended_for_memory)
}

/// The same with another place to ask for the kernel's record of what it ended for want of memory.
fn classify_by(
    record: &ExitRecord,
    log_tail: &[u8],
    ended_for_memory: impl FnOnce(Killed) -> Option<String>,
) -> Option<Failure> {
    let failure = |class, message: String, evidence| Some(Failure { class, message, evidence });
    if let Status::LaunchError(error) = &record.status {
        let evidence = format!("errno {}: {:?}", error.errno, error.command);
        return failure(FailureClass::LaunchError, error.message.clone(), Some(cut(&evidence)));
    }
    if record.stopped_by == Some(StoppedBy::TimeLimit) {
        let seconds = record.wall_seconds().unwrap_or_default();
        let message = format!("its time limit{} ran out; it ended after {seconds:.1} s", limit(record));
        return failure(FailureClass::Timeout, message, Some(cut(&time_spent(record, log_tail))));
    }
    if record.status == Status::Exited(0) {
        return None;
    }
    // The kernel's own word first: what it ended could not say anything any more.
    if let Some(clean) = record.clean.as_ref().filter(|clean| clean.oom_kills > 0) {
        let line = format!("memory.events of its control group: oom_kill {}", clean.oom_kills);
        return failure(
            FailureClass::HostOom,
            "its memory limit or the machine's memory ran out".to_owned(),
            Some(line),
        );
    }
    if let Some(line) = killed(record).and_then(ended_for_memory) {
        return failure(FailureClass::HostOom, message(FailureClass::HostOom).to_owned(), Some(cut(&line)));
    }
    if let Some((class, line)) = sign(log_tail) {
        return failure(class, message(class).to_owned(), Some(line));
    }
    match record.status {
        Status::Signaled(signal) => {
            let mut message = format!("it was ended by {}", signal_name(signal));
            if let Some(meaning) = meaning(signal) {
                message = format!("{message}: {meaning}");
            }
            failure(FailureClass::Signal, message, Some(last_line_or(log_tail, &signal_name(signal))))
        }
        Status::Exited(code) => {
            let status = format!("exit status {code}");
            let message = format!("it ended with {status}");
            failure(FailureClass::Exit, message, Some(last_line_or(log_tail, &status)))
        }
        Status::LaunchError(_) => None,
    }
}

fn message(class: FailureClass) -> &'static str {
    match class {
        FailureClass::CudaOom => "the GPU's memory ran out",
        FailureClass::GpuLost => "the GPU failed or went away",
        FailureClass::DiskFull => "a disk was full",
        FailureClass::HostOom => "the machine's memory ran out",
        FailureClass::NanLoss => "its loss was no longer a number",
        _ => "it failed",
    }
}

/// The last line that says why.
fn sign(log_tail: &[u8]) -> Option<(FailureClass, String)> {
    lines(log_tail).find_map(|line| {
        let lower = line.to_lowercase();
        let known = SIGNS.iter().find(|(_, words)| words.iter().all(|word| lower.contains(word)));
        let class = known.map(|(class, _)| *class).or_else(|| other_sign(&lower))?;
        Some((class, cut(&line)))
    })
}

fn other_sign(lower: &str) -> Option<FailureClass> {
    // Python's own words stand alone: `MemoryError` or `MemoryError: Unable to allocate …`.
    if lower.starts_with("memoryerror") || lower.starts_with("numpy._core._exceptions._arraymemoryerror") {
        return Some(FailureClass::HostOom);
    }
    let mut words = lower.split(|c: char| !c.is_alphanumeric() && c != '_');
    (lower.contains("loss") && words.any(|word| word == "nan")).then_some(FailureClass::NanLoss)
}

/// The lines from the last one back, as people see them: of a progress bar that was redrawn, what stood there in the end.
fn lines(log_tail: &[u8]) -> impl Iterator<Item = String> {
    log_tail.rsplit(|byte| *byte == b'\n').take(LINES_MAX).filter_map(|line| {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let shown = line.rsplit(|byte| *byte == b'\r').next().unwrap_or(line);
        let text = String::from_utf8_lossy(shown).trim().to_owned();
        (!text.is_empty()).then_some(text)
    })
}

/// The last line of the log. A command that has printed nothing has left its status alone.
fn last_line_or(log_tail: &[u8], status: &str) -> String {
    match lines(log_tail).next() {
        Some(line) => cut(&line),
        None => format!("{status}, and nothing in its log"),
    }
}

/// What the time limit was, where the record has it.
fn limit(record: &ExitRecord) -> String {
    record.time_limit_ms.map(|limit| format!(" of {} s", limit as f64 / 1000.0)).unwrap_or_default()
}

/// Where the time went of a command that did not end in time: how long it ran, how much of that it computed, what came of the
/// signal, and what it said last.
fn time_spent(record: &ExitRecord, log_tail: &[u8]) -> String {
    let seconds = record.wall_seconds().unwrap_or_default();
    let computed = record.clean.as_ref().and_then(|clean| clean.usage.cpu_seconds);
    let computed = computed.map(|seconds| format!(", with {seconds:.1} s of processor time")).unwrap_or_default();
    let end = match record.status {
        Status::Exited(code) => format!("exit status {code}"),
        Status::Signaled(signal) => signal_name(signal),
        Status::LaunchError(_) => String::new(),
    };
    let said = match lines(log_tail).next() {
        Some(line) => format!("last in its log: {line}"),
        None => "nothing in its log".to_owned(),
    };
    format!("time limit{}: ran {seconds:.1} s{computed}, ended with {end}; {said}", limit(record))
}

/// What a signal says that comes of what a command does or uses (signal(7)). SIGTERM and the like tell nothing of who sent them.
fn meaning(signal: i32) -> Option<&'static str> {
    Some(match signal {
        libc::SIGSEGV | libc::SIGBUS => "it used memory that it does not have",
        libc::SIGILL => "it ran an instruction that this processor does not know",
        libc::SIGFPE => "it calculated what has no result, such as an integer divided by zero",
        libc::SIGABRT => "it gave up by itself (abort)",
        libc::SIGPIPE => "it wrote to a pipe that nobody reads",
        libc::SIGSYS => "it made a system call that is forbidden to it",
        libc::SIGXCPU => "its limit of processor time ran out (`rlimits` of its profile)",
        libc::SIGXFSZ => "it wrote a file larger than its limit (`rlimits` of its profile)",
        libc::SIGKILL => "somebody sent it, or the kernel for want of memory, where its log (/dev/kmsg) cannot be read",
        _ => return None,
    })
}

fn cut(line: &str) -> String {
    line.chars().filter(|c| !c.is_control()).take(EVIDENCE_MAX_CHARS).collect()
}

/// Which process the kernel may have ended: the command, or a child of its whose end a shell has passed on.
fn killed(record: &ExitRecord) -> Option<Killed> {
    /// What a shell exits with when signal 9 has ended its command.
    const KILLED_CHILD: i32 = 128 + libc::SIGKILL;
    // What was asked to stop was killed by its shim.
    let process = record.process.as_ref().filter(|_| record.stopped_by.is_none())?;
    let pid = match record.status {
        Status::Signaled(libc::SIGKILL) => Some(process.pid),
        Status::Exited(KILLED_CHILD) => None,
        _ => return None,
    };
    Some(Killed { pid, from_us: process.at.monotonic_ns / 1000, to_us: record.ended.monotonic_ns / 1000 })
}

fn signal_name(signal: i32) -> String {
    match nix::sys::signal::Signal::try_from(signal) {
        Ok(known) => format!("signal {signal} ({known})"),
        Err(_) => format!("signal {signal}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Instant;
    use crate::record::LaunchError;
    use taxiway_job::LaunchId;

    fn record(status: Status) -> ExitRecord {
        ExitRecord {
            launch: LaunchId::random(),
            status,
            process: None,
            ended: Instant::now(),
            stopped_by: None,
            time_limit_ms: None,
            clean: None,
        }
    }

    #[test]
    fn what_the_kernel_ended_for_want_of_memory_is_told_by_its_record() {
        let now = Instant::now();
        let process = Some(crate::Started { pid: 4711, start_time: 1, at: now, go_at: now, gpu_uuids: Vec::new() });
        let line = || Some("Out of memory: Killed process 4711 (python3) total-vm:1kB".to_owned());
        let by_pid = ExitRecord { process: process.clone(), ..record(Status::Signaled(libc::SIGKILL)) };
        let failure = classify_by(&by_pid, b"epoch 3\n", |killed| (killed.pid == Some(4711)).then(line).flatten());
        let failure = failure.expect("it failed");
        assert_eq!((failure.class, failure.evidence), (FailureClass::HostOom, line()));

        let child = ExitRecord { process: process.clone(), ..record(Status::Exited(137)) };
        let by_time = |killed: Killed| killed.pid.is_none().then(line).flatten();
        assert_eq!(classify_by(&child, b"", by_time).map(|failure| failure.class), Some(FailureClass::HostOom));
        assert_eq!(classify_by(&child, b"", |_| None).map(|failure| failure.class), Some(FailureClass::Exit));
        // One that was killed by somebody is not asked about when another signal ended it.
        let other = ExitRecord { process: process.clone(), ..record(Status::Signaled(libc::SIGTERM)) };
        assert_eq!(classify_by(&other, b"", |_| line()).map(|failure| failure.class), Some(FailureClass::Signal));
    }

    #[test]
    fn what_its_control_group_counted_is_evidence() {
        let clean = crate::Clean {
            leftovers: 0,
            at: Instant::now(),
            usage: taxiway_job::Usage::default(),
            log_dropped_bytes: 0,
            oom_kills: 2,
        };
        let ended = ExitRecord { clean: Some(clean), ..record(Status::Exited(1)) };
        let failure = classify(&ended, b"RuntimeError: worker died").expect("it failed");
        assert_eq!(failure.class, FailureClass::HostOom);
        assert!(failure.evidence.is_some_and(|line| line.ends_with("oom_kill 2")));
        assert_eq!(classify(&ExitRecord { status: Status::Exited(0), ..ended }, b""), None);
    }

    fn class_of(status: Status, log: &str) -> Option<FailureClass> {
        classify(&record(status), log.as_bytes()).map(|failure| failure.class)
    }

    #[test]
    fn a_job_that_ends_with_status_0_did_not_fail_whatever_it_printed() {
        assert_eq!(class_of(Status::Exited(0), "CUDA out of memory, trying a smaller batch\ndone\n"), None);
    }

    #[test]
    fn each_class_is_found_in_what_real_programs_print() {
        let cases = [
            (
                FailureClass::CudaOom,
                "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has",
            ),
            (
                FailureClass::CudaOom,
                "jaxlib.xla_extension.XlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory while trying",
            ),
            (FailureClass::DiskFull, "OSError: [Errno 28] No space left on device: 'checkpoint.pt'"),
            (FailureClass::HostOom, "MemoryError: Unable to allocate 93.1 GiB"),
            (
                FailureClass::HostOom,
                "RuntimeError: [enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory",
            ),
            (FailureClass::NanLoss, "epoch 3: loss=nan"),
            (FailureClass::NanLoss, "ValueError: the loss is NaN at step 12"),
            (FailureClass::GpuLost, "Unable to determine the device handle for GPU 0000:01:00.0: GPU is lost."),
            (FailureClass::Exit, "finance: banana loss"),
        ];
        for (class, line) in cases {
            let log = format!("starting\n{line}\nbye\n");
            assert_eq!(class_of(Status::Exited(1), &log), Some(class), "{line}");
        }
    }

    #[test]
    fn the_evidence_is_the_line_as_it_was_seen() {
        let log = b"1%|\r50%|\rRuntimeError: CUDA out of memory.\r\n";
        let failure = classify(&record(Status::Exited(1)), log).expect("it failed");
        assert_eq!(failure.evidence.as_deref(), Some("RuntimeError: CUDA out of memory."));
    }

    #[test]
    fn status_signal_limit_and_launch_error_are_told_apart() {
        assert_eq!(class_of(Status::Exited(7), "x"), Some(FailureClass::Exit));
        assert_eq!(class_of(Status::Signaled(libc::SIGSEGV), "x"), Some(FailureClass::Signal));
        let error = LaunchError { errno: 2, message: "cannot execute".into(), command: vec!["nothing".into()] };
        assert_eq!(class_of(Status::LaunchError(error), ""), Some(FailureClass::LaunchError));
        let late = ExitRecord {
            stopped_by: Some(StoppedBy::TimeLimit),
            time_limit_ms: Some(1500),
            ..record(Status::Exited(0))
        };
        assert_eq!(classify(&late, b"").map(|failure| failure.class), Some(FailureClass::Timeout));
    }

    #[test]
    fn a_command_that_says_nothing_is_told_by_its_end() {
        let evidence = |record: &ExitRecord, log: &[u8]| {
            classify(record, log).and_then(|failure| failure.evidence).expect("every failure has some")
        };
        assert_eq!(evidence(&record(Status::Exited(3)), b"\n \n"), "exit status 3, and nothing in its log");
        assert_eq!(evidence(&record(Status::Signaled(9)), b""), "signal 9 (SIGKILL), and nothing in its log");
        let failure = classify(&record(Status::Signaled(libc::SIGSEGV)), b"epoch 1\n").expect("it failed");
        assert_eq!(failure.message, "it was ended by signal 11 (SIGSEGV): it used memory that it does not have");
        assert_eq!(failure.evidence.as_deref(), Some("epoch 1"));
    }

    #[test]
    fn a_command_that_ran_out_of_time_is_told_with_its_limit_and_where_the_time_went() {
        let ended = Instant::now();
        let at = Instant { boottime_ns: ended.boottime_ns - 2_300_000_000, ..ended };
        let late = ExitRecord {
            process: Some(crate::Started { pid: 4711, start_time: 1, at, go_at: at, gpu_uuids: Vec::new() }),
            ended,
            stopped_by: Some(StoppedBy::TimeLimit),
            time_limit_ms: Some(1500),
            clean: Some(crate::Clean {
                leftovers: 0,
                at: ended,
                usage: taxiway_job::Usage { cpu_seconds: Some(0.44), ..Default::default() },
                log_dropped_bytes: 0,
                oom_kills: 0,
            }),
            ..record(Status::Signaled(libc::SIGTERM))
        };
        let failure = classify(&late, b"epoch 1\nepoch 2\n").expect("it failed");
        assert_eq!(failure.message, "its time limit of 1.5 s ran out; it ended after 2.3 s");
        assert_eq!(
            failure.evidence.as_deref(),
            Some(
                "time limit of 1.5 s: ran 2.3 s, with 0.4 s of processor time, ended with signal 15 (SIGTERM); \
                 last in its log: epoch 2"
            )
        );
    }
}
