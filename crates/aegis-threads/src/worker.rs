//! Work that goes on until it is stopped, and says how it stands.
//! Promises that a stop wakes work that pauses, and that a panic is told where its counters are read.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::{Work, begin};

/// Counters of such work, since it was started.
pub trait Stats: Clone + Default + Send + 'static {
    /// What keeps it from going on, if something does.
    fn trouble(&mut self) -> &mut Option<String>;
}

/// The running work.
#[derive(Debug)]
pub struct Worker<S> {
    shared: Arc<Shared<S>>,
    ended: Option<Work>,
}

/// What the work and its holder both see.
#[derive(Debug, Default)]
pub struct Shared<S> {
    stop: AtomicBool,
    wake: Notify,
    /// How it stands: the work writes it.
    pub stats: Mutex<S>,
}

impl<S: Stats> Worker<S> {
    /// Starts `work` on a thread named `name`. `what` is the thread's name for people, who read it if the work panics.
    pub fn spawn<F>(
        name: &str,
        what: &'static str,
        work: impl FnOnce(Arc<Shared<S>>) -> F + Send + 'static,
    ) -> std::io::Result<Self>
    where
        F: Future<Output = ()>,
    {
        let shared = Arc::new(Shared::<S>::default());
        let (of_work, of_panic) = (Arc::clone(&shared), Arc::clone(&shared));
        let panicked = move || {
            tracing::error!("{what} panicked");
            *of_panic.stats.lock().trouble() = Some(format!("{what} panicked; restart the process"));
        };
        let ended = begin(name, move || work(of_work), panicked)?;
        Ok(Self { shared, ended: Some(ended) })
    }

    /// Counters now.
    #[must_use]
    pub fn stats(&self) -> S {
        self.shared.stats.lock().clone()
    }
}

impl<S> Worker<S> {
    /// Says that it is to end, and waits until it has.
    pub async fn stop(mut self) {
        self.shared.signal();
        if let Some(ended) = self.ended.take() {
            let _panic_is_told_already = ended.ended().await;
        }
    }
}

impl<S> Drop for Worker<S> {
    fn drop(&mut self) {
        self.shared.signal();
    }
}

impl<S> Shared<S> {
    fn signal(&self) {
        self.stop.store(true, Ordering::SeqCst);
        self.wake.notify_one();
    }

    /// True once the work is to end.
    #[must_use]
    pub fn stopping(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// Waits until the work is woken.
    pub async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Waits for so long, or until the work is woken.
    pub async fn pause(&self, time: Duration) {
        tokio::select! {
            () = tokio::time::sleep(time) => {}
            () = self.woken() => {}
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;

    const FOREVER: Duration = Duration::from_secs(3600);
    const PATIENCE: Duration = Duration::from_secs(30);

    #[derive(Clone, Debug, Default)]
    struct Rounds {
        rounds: u64,
        trouble: Option<String>,
    }

    impl Stats for Rounds {
        fn trouble(&mut self) -> &mut Option<String> {
            &mut self.trouble
        }
    }

    async fn go_round(shared: Arc<Shared<Rounds>>) {
        while !shared.stopping() {
            shared.stats.lock().rounds += 1;
            shared.pause(FOREVER).await;
        }
    }

    #[tokio::test]
    async fn a_stop_wakes_work_that_pauses_and_waits_for_its_end() {
        let worker = Worker::<Rounds>::spawn("test", "the test's thread", go_round).unwrap();
        let shared = Arc::clone(&worker.shared);
        tokio::time::timeout(PATIENCE, worker.stop()).await.unwrap();
        // A stop that comes before the first look at it leaves none to make.
        let stats = shared.stats.lock().clone();
        assert!(stats.rounds <= 1 && stats.trouble.is_none(), "{stats:?}");
    }

    #[tokio::test]
    async fn work_whose_holder_lets_go_of_it_ends() {
        let mut worker = Worker::<Rounds>::spawn("test", "the test's thread", go_round).unwrap();
        let ended = worker.ended.take().unwrap();
        drop(worker);
        assert_eq!(tokio::time::timeout(PATIENCE, ended.ended()).await.unwrap(), Ok(()));
    }

    #[tokio::test]
    async fn a_panic_is_told_where_the_counters_are_read() {
        let mut worker = Worker::<Rounds>::spawn("test", "the test's thread", |_| async { panic!("on purpose") }).unwrap();
        let ended = worker.ended.take().unwrap();
        assert_eq!(ended.ended().await, Err(crate::Panicked));
        assert_eq!(worker.stats().trouble.as_deref(), Some("the test's thread panicked; restart the process"));
    }
}
