//! A launch from its directory to its record, as a host sees it.

mod support;

use std::os::unix::fs::MetadataExt;
use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt;
use support::{Bench, Start, patiently, processes_of, sh};
use taxiway_job::FailureClass;
use taxiway_launcher::{ConfigFile, Event, GoError, Launcher, Settlement, Status, Stop, StoredPhase, failure, log};

#[tokio::test]
async fn a_job_that_ends_well_leaves_a_clean_record_and_its_whole_output() {
    let mut bench = Bench::new();
    let (start, record) = bench.run_to_end(sh("echo hello; echo world >&2")).await;
    assert_eq!(record.status, Status::Exited(0));
    assert_eq!(record.stopped_by, None);
    let clean = record.clean.as_ref().expect("the shim lived");
    assert_eq!((clean.leftovers, clean.log_dropped_bytes), (0, 0));
    assert!(clean.usage.peak_rss_bytes.is_some_and(|bytes| bytes > 100_000), "{:?}", clean.usage);
    assert_eq!(bench.log(start), "hello\nworld\n");
    assert_eq!(failure::classify(&record, b""), None);
}

#[tokio::test]
async fn exit_codes_and_signals_are_exact() {
    let mut bench = Bench::new();
    for code in [0, 1, 7, 126, 127, 255] {
        let (_, record) = bench.run_to_end(sh(&format!("exit {code}"))).await;
        assert_eq!(record.status, Status::Exited(code));
    }
    for signal in [libc::SIGTERM, libc::SIGKILL, libc::SIGSEGV, libc::SIGUSR1] {
        let (_, record) = bench.run_to_end(sh(&format!("kill -{signal} $$"))).await;
        assert_eq!(record.status, Status::Signaled(signal));
        assert_eq!(record.exit().signal, Some(signal));
    }
}

#[tokio::test]
async fn a_command_that_cannot_be_executed_says_why_with_its_errno() {
    let mut bench = Bench::new();
    let not_executable = bench.directory.path().join("plain.txt");
    std::fs::write(&not_executable, "text").expect("a file");
    let text = |path: &std::path::Path| path.to_str().expect("UTF-8").to_owned();
    let cases = [
        (
            vec!["no-such-program-anywhere".to_owned()],
            None,
            libc::ENOENT,
            "cannot execute \"no-such-program-anywhere\"",
        ),
        (vec![text(&not_executable)], None, libc::EACCES, "Permission denied"),
        (vec!["/".to_owned()], None, libc::EACCES, "cannot execute"),
        (sh("true"), Some("/no/such/directory".into()), libc::ENOENT, "working directory /no/such/directory"),
    ];
    for (command, cwd, errno, words) in cases {
        let mut plan = bench.plan(Start::new(), command.clone());
        plan.cwd = cwd;
        let start = bench.ready(plan).await;
        bench.launcher.go(start.launch, &[]).expect("it is ready");
        let record = bench.end(start).await;
        let Status::LaunchError(error) = &record.status else { panic!("{command:?} ran: {record:?}") };
        assert_eq!((error.errno, &error.command), (errno, &command));
        assert!(error.message.contains(words), "{}", error.message);
        let failure = failure::classify(&record, b"").expect("it failed");
        assert_eq!(failure.class, FailureClass::LaunchError);
        bench.launcher.confirm(start.launch);
    }
}

#[tokio::test]
async fn an_end_that_does_not_fit_into_the_socket_of_its_host_is_read_from_the_record() {
    let mut bench = Bench::new();
    let command = [vec!["/no/such/program".to_owned()], vec!["x".repeat(50_000); 12]].concat();
    let start = bench.ready(bench.plan(Start::new(), command.clone())).await;
    bench.launcher.go(start.launch, &[]).expect("it is ready");
    match bench.event().await {
        Event::Settled { settlement: Settlement::Record(record), .. } => {
            let Status::LaunchError(error) = &record.status else { panic!("it ran") };
            assert_eq!((error.errno, &error.command), (libc::ENOENT, &command));
        }
        _ => panic!("it was told whole, or not at all"),
    }
}

#[tokio::test]
async fn the_environment_is_the_fixed_one_the_jobs_and_the_launchers_and_nothing_of_the_service() {
    let mut bench = Bench::new();
    // SAFETY: nextest and `--test-threads=1` aside, no other thread of this test program reads the environment.
    unsafe { std::env::set_var("SECRET_OF_THE_SERVICE", "do not show") };
    let start = Start::new();
    let mut plan = bench.plan(start, sh("env; pwd; echo config: \"$0\"; cat \"$TAXIWAY_CONFIG_FILE\""));
    plan.command.push("{config_file} {external_id} {attempt}".to_owned());
    plan.attempt = 3;
    plan.external_id = Some("mine".to_owned());
    plan.env =
        [("A", "1"), ("LANG", "de_DE"), ("A", "2"), ("TAXIWAY_ATTEMPT", "9")].map(|(k, v)| (k.into(), v.into())).into();
    plan.config = Some(ConfigFile { file_name: "config.json".into(), bytes: b"{\"lr\": 1}".to_vec() });
    let start = bench.ready(plan).await;
    bench.launcher.go(start.launch, &["GPU-1".into(), "GPU-2".into()]).expect("it is ready");
    assert!(matches!(bench.event().await, Event::Started { .. }));
    bench.end(start).await;
    let log = bench.log(start);
    let directory = bench.launch_dir(start);
    let directory = std::fs::canonicalize(directory).expect("it is there");
    let config = directory.join("config.json");
    let expected = [
        "A=2".to_owned(),
        "LANG=de_DE".to_owned(),
        "TAXIWAY_ATTEMPT=3".to_owned(),
        "TMPDIR=/tmp".to_owned(),
        "PYTHONUNBUFFERED=1".to_owned(),
        "CUDA_VISIBLE_DEVICES=GPU-1,GPU-2".to_owned(),
        "CUDA_DEVICE_ORDER=PCI_BUS_ID".to_owned(),
        format!("TAXIWAY_JOB_ID={}", start.job),
        format!("TAXIWAY_LAUNCH_ID={}", start.launch),
        format!("TAXIWAY_CONFIG_FILE={}", config.display()),
        format!("TAXIWAY_PROGRESS_FILE={}", directory.join("progress.json").display()),
        directory.parent().expect("the job's directory").display().to_string(),
        format!("config: {} mine 3", config.display()),
    ];
    for line in expected {
        assert!(log.lines().any(|found| found == line), "{line} is missing in\n{log}");
    }
    assert!(log.ends_with("{\"lr\": 1}"), "{log}");
    assert!(!log.contains("SECRET_OF_THE_SERVICE"), "{log}");
}

#[tokio::test]
async fn a_job_without_gpus_sees_none_and_one_on_a_virtual_slot_is_left_alone() {
    let mut bench = Bench::new();
    for (hide_gpus, expected) in [(true, "set to ''"), (false, "unset")] {
        let mut plan = bench.plan(
            Start::new(),
            sh("echo ${CUDA_VISIBLE_DEVICES+set to \\'$CUDA_VISIBLE_DEVICES\\'}${CUDA_VISIBLE_DEVICES-unset}"),
        );
        plan.hide_gpus = hide_gpus;
        let (start, _) = bench.run_plan(plan).await;
        bench.end(start).await;
        assert_eq!(bench.log(start).trim(), expected);
    }
}

#[tokio::test]
async fn a_job_gets_no_open_file_but_its_three() {
    let mut bench = Bench::new();
    let (start, _) = bench
        .run_to_end(sh("ls -l /proc/$$/fd; readlink /proc/$$/fd/0; grep -E 'Sig(Blk|Ign)' /proc/self/status"))
        .await;
    let log = bench.log(start);
    let open = log.lines().filter(|line| line.contains(" -> ")).count();
    assert_eq!(open, 3, "{log}");
    assert!(log.contains("/dev/null"), "{log}");
    assert!(log.contains("SigBlk:\t0000000000000000"), "{log}");
    let ignored = log.split("SigIgn:\t").nth(1).and_then(|rest| rest.lines().next()).expect("a mask");
    let ignored = u64::from_str_radix(ignored, 16).expect("a mask");
    // 32 and 33 are the C library's own: it lets nobody change them, and they are as they were when the tests were started.
    assert_eq!(ignored & !(0b11 << 31), 0, "{log}");
}

#[tokio::test]
async fn an_armed_job_has_not_started_and_a_disarmed_one_leaves_nothing() {
    let mut bench = Bench::new();
    let touched = bench.directory.path().join("touched");
    let plan = bench.plan(Start::new(), sh(&format!("touch {}", touched.display())));
    let start = bench.ready(plan).await;
    assert!(!bench.launch_dir(start).join("started").exists());
    bench.launcher.disarm(start.launch);
    assert!(matches!(bench.settlement(start).await, Settlement::NotStarted { reason: None }));
    assert_eq!(bench.launcher.go(start.launch, &[]), Err(GoError::NotReady));
    bench.launcher.confirm(start.launch);
    bench.removed(start).await;
    assert!(!touched.exists());
}

#[tokio::test]
async fn a_disarmed_launch_is_found_unstarted_again_until_that_is_confirmed() {
    let mut bench = Bench::new();
    let plan = bench.plan(Start::new(), sh("true"));
    let start = bench.ready(plan).await;
    bench.launcher.disarm(start.launch);
    assert!(matches!(bench.settlement(start).await, Settlement::NotStarted { reason: None }));
    // As often as the host is killed before its store knows.
    for _ in 0..2 {
        bench.recover(start, StoredPhase::Armed);
        assert!(matches!(bench.settlement(start).await, Settlement::NotStarted { reason: None }));
    }
    bench.launcher.confirm(start.launch);
    bench.removed(start).await;
}

#[tokio::test]
async fn a_launch_can_be_disarmed_at_every_step_before_go() {
    let mut bench = Bench::new();
    // At once after `prepare`, after it was prepared, and at once after `arm`.
    for step in 0..3 {
        let start = Start::new();
        let plan = bench.plan(start, sh("true"));
        bench.launcher.prepare(plan);
        if step > 0 {
            assert!(matches!(bench.event().await, Event::Prepared { .. }));
        }
        if step > 1 {
            bench.launcher.arm(start.launch);
        }
        bench.launcher.disarm(start.launch);
        let settlement = loop {
            match bench.event().await {
                // It may have come so far before it heard.
                Event::Prepared { .. } | Event::Ready { .. } => {}
                Event::Settled { settlement, .. } => break settlement,
                other => panic!("step {step}: {other:?}"),
            }
        };
        assert!(matches!(settlement, Settlement::NotStarted { reason: None }), "step {step}: {settlement:?}");
        bench.launcher.confirm(start.launch);
        bench.removed(start).await;
    }
}

#[tokio::test]
async fn go_starts_a_command_once() {
    let mut bench = Bench::new();
    let plan = bench.plan(Start::new(), sh("echo once"));
    let start = bench.ready(plan).await;
    bench.launcher.go(start.launch, &[]).expect("it is ready");
    assert_eq!(bench.launcher.go(start.launch, &[]), Err(GoError::NotReady));
    assert!(matches!(bench.event().await, Event::Started { .. }));
    bench.end(start).await;
    assert_eq!(bench.log(start), "once\n");
}

#[tokio::test]
async fn the_mark_of_a_start_is_another_name_of_its_record() {
    let mut bench = Bench::new();
    let (start, _) = bench.run_to_end(sh("test -e $TAXIWAY_JOB_DIR/$TAXIWAY_LAUNCH_ID/started && echo marked")).await;
    assert_eq!(bench.log(start), "marked\n");
    let inode = |name: &str| std::fs::metadata(bench.launch_dir(start).join(name)).expect("a file").ino();
    assert_eq!(inode("started"), inode("exit.json"));
}

#[tokio::test]
async fn stdout_and_stderr_keep_their_order() {
    let mut bench = Bench::new();
    let (start, _) =
        bench.run_to_end(sh("i=0; while [ $i -lt 1000 ]; do echo $i; i=$((i+1)); echo $i >&2; i=$((i+1)); done")).await;
    let numbers: Vec<u32> = bench.log(start).lines().map(|line| line.parse().expect("a number")).collect();
    assert_eq!(numbers, (0..1000).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_log_over_its_cap_keeps_the_first_bytes_a_marker_and_the_end() {
    let mut bench = Bench::with_log_max_size(200 << 10);
    let (start, record) = bench.run_to_end(sh("seq -f %09.0f 1 100000")).await;
    let log = std::fs::read(bench.log_path(start)).expect("a log");
    assert!(log.len() <= 200 << 10, "{} bytes", log.len());
    let all: String = (1..=100_000).map(|n| format!("{n:09}\n")).collect();
    let marker = b"\n[taxiway: ";
    let at = log.windows(marker.len()).position(|window| window == marker).expect("a marker");
    let end = at + log[at..].iter().position(|byte| *byte == b']').expect("its end") + 2;
    assert!(all.as_bytes().starts_with(&log[..at]));
    assert!(all.as_bytes().ends_with(&log[end..]));
    assert_eq!(log.len() - end, 64 << 10);
    let dropped = record.clean.expect("the shim lived").log_dropped_bytes;
    assert_eq!(
        dropped as usize,
        all.len() - at - (log.len() - end),
        "the marker's figure and the record's are the truth"
    );
    assert!(String::from_utf8_lossy(&log[at..end]).contains(&dropped.to_string()));
}

#[tokio::test]
async fn a_log_just_over_the_head_room_loses_nothing() {
    let mut bench = Bench::with_log_max_size(200 << 10);
    let (start, record) = bench.run_to_end(sh("head -c 180000 /dev/zero")).await;
    assert_eq!(std::fs::metadata(bench.log_path(start)).expect("a log").len(), 180_000);
    assert_eq!(record.clean.expect("the shim lived").log_dropped_bytes, 0);
}

#[tokio::test]
async fn following_gives_every_byte_once_and_in_order_while_the_job_writes() {
    let mut bench = Bench::with_log_max_size(64 << 20);
    let plan = bench.plan(Start::new(), sh("seq 1 300000; printf 'bin\\000ary'"));
    let start = bench.ready(plan).await;
    let (over, is_over) = tokio::sync::oneshot::channel::<()>();
    let path = bench.log_path(start);
    let from_start = tokio::spawn(async move {
        let mut all = Vec::new();
        let mut chunks = pin!(log::follow(path, 0, async { is_over.await.unwrap_or(()) }));
        while let Some(chunk) = chunks.next().await {
            all.extend_from_slice(&chunk.expect("a log"));
        }
        all
    });
    bench.launcher.go(start.launch, &[]).expect("it is ready");
    assert!(matches!(bench.event().await, Event::Started { .. }));
    bench.end(start).await;
    over.send(()).expect("somebody follows");
    let mut expected: Vec<u8> = (1..=300_000).flat_map(|n| format!("{n}\n").into_bytes()).collect();
    expected.extend_from_slice(b"bin\0ary");
    assert!(patiently(from_start).await.expect("it ends") == expected, "not every byte once and in order");

    let offset = 123_456;
    let mut rest = Vec::new();
    let mut chunks = pin!(log::follow(bench.log_path(start), offset, std::future::ready(())));
    while let Some(chunk) = patiently(chunks.next()).await {
        rest.extend_from_slice(&chunk.expect("a log"));
    }
    assert!(rest == expected[offset as usize..], "a reconnect from an offset goes on exactly there");
}

#[tokio::test]
async fn what_a_job_leaves_behind_is_ended_before_its_end_is_told() {
    let mut bench = Bench::new();
    let script = "sleep 1000 & setsid sleep 1000 & (setsid sh -c 'sleep 1000 & sleep 1000' &) ; exit 3";
    let (start, record) = bench.run_to_end(sh(script)).await;
    assert_eq!(record.status, Status::Exited(3));
    assert!(record.clean.is_some_and(|clean| clean.leftovers >= 3));
    assert!(processes_of(start.launch).is_empty());
}

#[tokio::test]
async fn progress_comes_from_the_file_and_once_more_at_the_end() {
    let mut bench = Bench::new();
    let gate = bench.directory.path().join("gate");
    let script = format!(
        "mkfifo {0}; echo '{{\"progress\": 0.25}}' > $TAXIWAY_PROGRESS_FILE; echo up; read line < {0}; \
         echo '{{\"progress\": 1.0}}' > $TAXIWAY_PROGRESS_FILE",
        gate.display()
    );
    let (start, _) = bench.run(sh(&script)).await;
    let fraction = |event: Event| match event {
        Event::Progress { launch, progress } if launch == start.launch => progress.fraction,
        other => panic!("no progress: {other:?}"),
    };
    assert_eq!(fraction(bench.event().await), Some(0.25));
    std::fs::write(&gate, "\n").expect("the job reads");
    assert_eq!(fraction(bench.event().await), Some(1.0));
    assert!(matches!(bench.event().await, Event::Ended { .. } | Event::Progress { .. }));
}

#[tokio::test]
async fn progress_comes_from_tqdm_lines_when_there_is_no_file() {
    let mut bench = Bench::new();
    let (start, _) =
        bench.run(sh("printf ' 42%%|####      | 420/1000 [00:12<00:17, 33.3it/s]\\r' >&2; exec sleep 1000")).await;
    match bench.event().await {
        Event::Progress { progress, .. } => assert_eq!((progress.fraction, progress.step), (Some(0.42), Some(420))),
        other => panic!("no progress: {other:?}"),
    }
    bench.launcher.stop(start.launch, Stop { grace: None, signal: None });
    bench.end(start).await;
}

#[tokio::test]
async fn an_unusable_plan_or_directory_is_refused_with_its_reason() {
    let mut bench = Bench::new();
    let mut plan = bench.plan(Start::new(), Vec::new());
    bench.launcher.prepare(plan.clone());
    let Event::PrepareFailed { error, .. } = bench.event().await else { panic!("it was prepared") };
    assert!(error.to_string().contains("the command is empty"));
    plan.command = sh("true");
    std::fs::write(bench.jobs_dir().join(plan.job.to_string()), "in the way").expect("a file");
    bench.launcher.prepare(plan);
    let Event::PrepareFailed { error, .. } = bench.event().await else { panic!("it was prepared") };
    assert!(error.to_string().contains("something else in its place"), "{error}");
}

#[tokio::test]
async fn the_jobs_directory_may_have_a_path_longer_than_a_sockets_address() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let long = directory.path().join("d".repeat(200));
    let (sender, mut events) = tokio::sync::mpsc::channel(8);
    let options = taxiway_launcher::Options::new(long, support::PROGRAM.into(), 1 << 20);
    let launcher = taxiway_launcher::LocalLauncher::start(options, sender).expect("a launcher");
    let bench = Bench::new();
    let start = Start::new();
    launcher.prepare(bench.plan(start, sh("exit 5")));
    loop {
        match patiently(events.recv()).await.expect("it lives") {
            Event::Prepared { launch } => launcher.arm(launch),
            Event::Ready { launch } => launcher.go(launch, &[]).expect("it is ready"),
            Event::Started { .. } => {}
            Event::Ended { record, .. } => break assert_eq!(record.status, Status::Exited(5)),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_time_limit_stops_a_job_and_an_extension_moves_it() {
    let mut bench = Bench::new();
    let mut plan =
        bench.plan(Start::new(), sh("trap 'echo asked; exit 9' TERM; echo up; while :; do sleep 1000 & wait; done"));
    plan.time_limit = Some(Duration::from_secs(3600));
    let (start, _) = bench.run_plan(plan).await;
    bench.log_has(start, "up").await;
    bench.launcher.extend(start.launch, Some(Duration::from_millis(100)));
    let record = bench.end(start).await;
    assert!(record.timed_out());
    assert_eq!(record.status, Status::Exited(9));
    assert_eq!(bench.log(start), "up\nasked\n");
    assert_eq!(failure::classify(&record, b"").map(|failure| failure.class), Some(FailureClass::Timeout));
    assert!(processes_of(start.launch).is_empty());
}

#[tokio::test]
async fn another_time_limit_holds_or_is_said_to_come_too_late() {
    let mut bench = Bench::new();
    let (start, _) = bench.run(sh("trap '' TERM; echo up; while :; do sleep 1000; done")).await;
    bench.log_has(start, "up").await;
    assert!(bench.launcher.extend(start.launch, Some(Duration::from_secs(1000))));
    assert!(bench.extended().await, "there was none before");
    assert!(bench.launcher.extend(start.launch, Some(Duration::from_millis(1))));
    assert!(bench.extended().await);
    // The limit has struck, and the grace runs.
    assert!(bench.launcher.extend(start.launch, Some(Duration::from_secs(1000))));
    assert!(!bench.extended().await);
    bench.launcher.stop(start.launch, Stop { grace: Some(Duration::ZERO), signal: None });
    assert!(bench.end(start).await.timed_out());
}

#[tokio::test]
async fn an_output_that_somebody_else_goes_on_writing_to_does_not_keep_the_job_from_its_end() {
    use std::io::{Read, Write};
    let mut bench = Bench::new();
    // A service of which the job is a client: it gets the job's output and writes to it without end.
    let path = bench.directory.path().join("service");
    let listener = std::os::unix::net::UnixListener::bind(&path).expect("a socket");
    let service = std::thread::spawn(move || {
        let (mut client, _) = listener.accept().expect("a client");
        let mut pid = [0; 4];
        client.read_exact(&mut pid).expect("its pid");
        let mut output = std::fs::OpenOptions::new()
            .write(true)
            .open(format!("/proc/{}/fd/1", i32::from_le_bytes(pid)))
            .expect("its output");
        client.write_all(b"!").expect("it waits");
        while output.write_all(&[b'x'; 4096]).is_ok() {}
    });
    let script = format!(
        "import os, socket, struct\ns = socket.socket(socket.AF_UNIX)\ns.connect({:?})\n\
         s.sendall(struct.pack('<i', os.getpid()))\ns.recv(1)\nraise SystemExit(4)",
        path.to_str().expect("UTF-8")
    );
    let (_, record) = bench.run_to_end(["python3", "-c", &script].map(str::to_owned).to_vec()).await;
    assert_eq!(record.status, Status::Exited(4));
    service.join().expect("it ends when nobody reads any more");
}
