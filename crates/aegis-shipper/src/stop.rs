//! When to end: once a stop was asked for, so much time is left to ship what is there. Nothing is waited for past that.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// The time to stop has passed.
#[derive(Debug)]
pub(crate) struct Expired;

#[derive(Debug)]
pub(crate) struct Stop {
    asked: watch::Receiver<bool>,
    /// How long shipping goes on.
    drain: Duration,
    /// Set once a stop was asked for.
    deadline: Option<Instant>,
}

impl Stop {
    pub(crate) fn new(asked: watch::Receiver<bool>, drain: Duration) -> Self {
        Self { asked, drain, deadline: None }
    }

    /// Whether a stop was asked for. Also when the handle was dropped: then nobody waits, but what is there is still shipped.
    pub(crate) fn is_asked(&mut self) -> Result<bool, Expired> {
        if *self.asked.borrow() || self.asked.has_changed().is_err() {
            self.begin();
        }
        match self.deadline {
            Some(deadline) if Instant::now() >= deadline => Err(Expired),
            deadline => Ok(deadline.is_some()),
        }
    }

    /// Waits until a stop is asked for, once; from then on, until its time has passed. May be cancelled.
    pub(crate) async fn next(&mut self) -> Result<(), Expired> {
        if let Some(deadline) = self.deadline {
            sleep_until(deadline).await;
            return Err(Expired);
        }
        let _asked_or_dropped = self.asked.changed().await;
        self.begin();
        Ok(())
    }

    /// What `future` gives, if the time does not pass before.
    pub(crate) async fn before<T>(&mut self, mut future: impl Future<Output = T> + Unpin) -> Result<T, Expired> {
        loop {
            tokio::select! {
                biased;
                done = &mut future => return Ok(done),
                asked = self.next() => asked?,
            }
        }
    }

    fn begin(&mut self) {
        self.deadline.get_or_insert(Instant::now() + self.drain);
    }
}
