//! What the service cannot go on without.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tokio::task::JoinHandle;

/// EX_SOFTWARE of sysexits.h: an internal error.
const FAILED: i32 = 70;

/// Waits for a task without which the service would answer and do nothing: if it panics, the process ends.
pub(crate) async fn task(what: &'static str, task: JoinHandle<()>) {
    if task.await.is_err_and(|error| error.is_panic()) {
        end(what);
    }
}

/// The same with what a thread does.
pub(crate) fn thread(what: &'static str, work: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(work)).is_err() {
        end(what);
    }
}

/// As a kill would: nothing that was acknowledged is lost, jobs go on, and the next service takes them over.
fn end(what: &'static str) -> ! {
    tracing::error!("Taxiway made a mistake and {what} has failed: the service ends, and jobs go on; start it again");
    // SAFETY: _exit takes any status and does not return. What libraries would do at an exit might wait for threads that hang.
    unsafe { nix::libc::_exit(FAILED) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAILING: &str = "TAXIWAY_TEST_FAILING";

    /// Runs this test once more in a process of its own, in which `fails` is called.
    fn ends_its_process(test: &str, fails: fn()) {
        if std::env::var_os(FAILING).is_some() {
            return fails();
        }
        let mut again = std::process::Command::new(std::env::current_exe().expect("a test knows its file"));
        again.args(["--exact", &format!("vital::tests::{test}"), "--nocapture"]).env(FAILING, "1");
        let output = again.output().expect("it can be executed");
        assert_eq!(output.status.code(), Some(FAILED), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("a mistake"), "the panic's own message: {output:?}");
    }

    #[test]
    fn a_thread_that_fails_ends_the_process() {
        ends_its_process("a_thread_that_fails_ends_the_process", || thread("a thread", || panic!("a mistake")));
    }

    #[test]
    fn a_task_that_fails_ends_the_process() {
        ends_its_process("a_task_that_fails_ends_the_process", || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            runtime.block_on(async {
                let stopped = tokio::spawn(std::future::pending());
                stopped.abort();
                task("another task", stopped).await;
                task("a task", tokio::spawn(async { panic!("a mistake") })).await;
            });
        });
    }
}
