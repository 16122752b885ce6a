//! Work behind the action path: a thread and a runtime of its own, at a lower priority than the threads that answer agents.
//! Promises that a busy machine slows this work before it slows an answer; threads that the work starts inherit the priority.
//! Nothing that an answer waits for may run here.

mod worker;

use std::future::Future;
use std::panic::AssertUnwindSafe;

use thread_priority::{ThreadPriority, ThreadPriorityValue, set_current_thread_priority};
use tokio::sync::oneshot;

pub use worker::{Shared, Stats, Worker};

/// How much nicer the work is than the thread that starts it: it gets a tenth of the time where threads that answer want all of it,
/// all of it where they do not. Not the idle class: work that is stopped there while it holds the file system's journal can hold up
/// every commit.
const NICER_BY: i32 = 10;
const NICEST: i32 = 19;

/// Work that runs until it is done.
#[derive(Debug)]
pub struct Work {
    ended: oneshot::Receiver<Result<(), Panicked>>,
}

/// The work panicked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the work panicked; the log says where")]
pub struct Panicked;

/// Starts `work` on a thread named `name`. `work` makes its future there, so that the future need not be `Send`.
pub fn spawn<F>(name: &str, work: impl FnOnce() -> F + Send + 'static) -> std::io::Result<Work>
where
    F: Future<Output = ()>,
{
    begin(name, work, || {})
}

/// The same; `panicked` runs on the thread before the end of work that panicked is told.
fn begin<F>(
    name: &str,
    work: impl FnOnce() -> F + Send + 'static,
    panicked: impl FnOnce() + Send + 'static,
) -> std::io::Result<Work>
where
    F: Future<Output = ()>,
{
    let (ended, receiver) = oneshot::channel();
    let (started, start) = std::sync::mpsc::sync_channel(1);
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        // Made here: a runtime that a failed start threw away inside another one would panic.
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                let _nobody_waits = started.send(Err(error));
                return;
            }
        };
        let _nobody_waits = started.send(Ok(()));
        if let Err(error) = step_back() {
            tracing::warn!(?error, "background work runs at full priority: the system refused a lower one");
        }
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| runtime.block_on(work())));
        if outcome.is_err() {
            panicked();
        }
        let _nobody_waits = ended.send(outcome.map_err(|_| Panicked));
    })?;
    start.recv().unwrap_or_else(|_| Err(std::io::Error::other("the thread ended before it began")))?;
    Ok(Work { ended: receiver })
}

fn step_back() -> Result<(), thread_priority::Error> {
    let target = (niceness() + NICER_BY).min(NICEST);
    // The crate spreads the niceness 19 to -20 over the values 0 to 99; half a step keeps rounding from missing the target.
    let value = 99.0 * (1.0 - (f64::from(target + 20) + 0.5) / 39.0);
    let value = ThreadPriorityValue::try_from(value.clamp(0.0, 99.0) as u8).unwrap_or_default();
    set_current_thread_priority(ThreadPriority::Crossplatform(value))
}

/// The niceness of the calling thread, as the kernel has it; 0 where it cannot be told.
fn niceness() -> i32 {
    let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap_or_default();
    // The name in parentheses may hold spaces; niceness is the 17th field behind it.
    stat.rsplit_once(')').and_then(|(_, fields)| fields.split_whitespace().nth(16)?.parse().ok()).unwrap_or(0)
}

impl Work {
    /// Waits for the end.
    pub async fn ended(self) -> Result<(), Panicked> {
        self.ended.await.unwrap_or(Err(Panicked))
    }

    /// True once the work has ended.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        !self.ended.is_empty() || self.ended.is_terminated()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn the_work_and_its_threads_step_back_and_their_maker_does_not() {
        let before = niceness();
        let (report, reported) = std::sync::mpsc::channel();
        let work = spawn("test", move || async move {
            let inherited = std::thread::spawn(niceness).join().unwrap();
            report.send((niceness(), inherited)).unwrap();
        });
        work.unwrap().ended().await.unwrap();
        let (own, inherited) = reported.recv().unwrap();
        assert_eq!((own, inherited, niceness()), ((before + NICER_BY).min(NICEST), own, before));
    }

    #[tokio::test]
    async fn a_panic_is_told_to_whoever_waits() {
        assert_eq!(spawn("test", || async { panic!("on purpose") }).unwrap().ended().await, Err(Panicked));
    }
}
