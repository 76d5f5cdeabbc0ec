//! Why a launch failed: its exit record, the kernel's record and the last lines of its log, with the line that shows it.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;

use taxiway_job::{Failure, FailureClass};

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
    let failure = |class, message: String, evidence| Some(Failure { class, message, evidence });
    if let Status::LaunchError(error) = &record.status {
        let evidence = format!("errno {}: {:?}", error.errno, error.command);
        return failure(FailureClass::LaunchError, error.message.clone(), Some(cut(&evidence)));
    }
    if record.stopped_by == Some(StoppedBy::TimeLimit) {
        let seconds = record.wall_seconds().unwrap_or_default();
        return failure(FailureClass::Timeout, format!("its time limit ran out; it ended after {seconds:.1} s"), None);
    }
    if record.status == Status::Exited(0) {
        return None;
    }
    if let Some((class, line)) = sign(log_tail) {
        return failure(class, message(class).to_owned(), Some(line));
    }
    match record.status {
        Status::Signaled(signal) => {
            if signal == libc::SIGKILL
                && let Some(line) = record.process.and_then(|process| kernel_oom_record(process.pid))
            {
                return failure(FailureClass::HostOom, message(FailureClass::HostOom).to_owned(), Some(line));
            }
            let message = format!("it was ended by {}", signal_name(signal));
            failure(FailureClass::Signal, message, last_line(log_tail))
        }
        Status::Exited(code) => {
            failure(FailureClass::Exit, format!("it ended with exit status {code}"), last_line(log_tail))
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

fn last_line(log_tail: &[u8]) -> Option<String> {
    lines(log_tail).next().map(|line| cut(&line))
}

fn cut(line: &str) -> String {
    line.chars().filter(|c| !c.is_control()).take(EVIDENCE_MAX_CHARS).collect()
}

/// The kernel's own words on ending this process for want of memory, where its log may be read (dmesg_restrict).
fn kernel_oom_record(pid: i32) -> Option<String> {
    let mut log = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg").ok()?;
    let killed = format!("Killed process {pid} ");
    let mut found = None;
    let mut record = [0_u8; 8 << 10];
    loop {
        match log.read(&mut record) {
            Ok(0) => return found,
            Ok(read) => {
                let text = String::from_utf8_lossy(&record[..read]);
                // `priority,sequence,time,flags;message` (Documentation/ABI/testing/dev-kmsg).
                let message = text.split_once(';').map_or("", |(_, message)| message.lines().next().unwrap_or(""));
                if message.contains(&killed) {
                    found = Some(cut(message));
                }
            }
            // A record was overwritten before it was read; the next one comes.
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
            Err(_) => return found,
        }
    }
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
            clean: None,
        }
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
        let late = ExitRecord { stopped_by: Some(StoppedBy::TimeLimit), ..record(Status::Exited(0)) };
        assert_eq!(classify(&late, b"").map(|failure| failure.class), Some(FailureClass::Timeout));
    }
}
