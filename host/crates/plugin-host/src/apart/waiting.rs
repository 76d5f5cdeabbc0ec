//! Where guests with a thread of their own wait: a runtime beside the service's.
//!
//! What blocks (reading a file, looking up a name) is done on threads which a runtime keeps for that, and has whoever needs one make.
//! One that a busy guest's thread makes inherits its low priority, which cannot be raised again: of the service's own runtime it would
//! work for the whole service after that.

use tokio::runtime::{Builder, Handle, Runtime};

/// Such a runtime. It ends without waiting for what is under way: guests that are cut off may leave it in the middle of a read.
pub struct Waiting {
    handle: Handle,
    /// There until it is dropped.
    runtime: Option<Runtime>,
}

impl Waiting {
    /// # Errors
    /// When the system has no thread to give.
    pub fn start() -> std::io::Result<Waiting> {
        // One thread tells all of them that their time, or what they wait for, has come.
        let runtime = Builder::new_multi_thread().worker_threads(1).thread_name("plugin-waits").enable_all().build()?;
        Ok(Waiting { handle: runtime.handle().clone(), runtime: Some(runtime) })
    }

    /// Has this thread do nothing else until it is done.
    pub fn block_on<T>(&self, what: impl Future<Output = T>) -> T {
        self.handle.block_on(what)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
