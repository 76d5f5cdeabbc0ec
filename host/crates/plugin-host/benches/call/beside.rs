//! What others feel: a plugin that is called again and again, and the memory of the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use taxiway_plugin_host::{Context, JobView, Plugin};
use tokio::task::JoinHandle;

/// Calls of a harmless plugin, one after the other.
pub struct Others {
    ended: Arc<AtomicBool>,
    calls: JoinHandle<Duration>,
}

impl Others {
    pub fn start(good: &Plugin, job: &JobView, context: &Context) -> Others {
        let ended = Arc::new(AtomicBool::new(false));
        let (good, job, context, seen) = (good.clone(), job.clone(), context.clone(), ended.clone());
        let calls = tokio::spawn(async move {
            let mut slowest = Duration::ZERO;
            while !seen.load(Ordering::Relaxed) {
                let begun = Instant::now();
                good.validate(&job, &context).await.result.expect("it answers");
                slowest = slowest.max(begun.elapsed());
                tokio::task::yield_now().await;
            }
            slowest
        });
        Others { ended, calls }
    }

    /// Ends them. The slowest of them.
    pub async fn slowest(self) -> Duration {
        self.ended.store(true, Ordering::Relaxed);
        self.calls.await.expect("no panic")
    }
}

/// What is resident when that of calls that have ended is given back, which nothing tells of: it is done after their answers. What is
/// still there after a few seconds is kept.
pub async fn given_back(before: u64) -> u64 {
    const NEARLY: u64 = 4 << 20;
    let until = Instant::now() + Duration::from_secs(5);
    while resident_bytes() > before + NEARLY && Instant::now() < until {
        // No event tells that memory has been given back.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    resident_bytes()
}

pub fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("/proc");
    let pages: u64 = statm.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).expect("a number");
    pages * 4096
}
