//! One alarm for all that a connection waits for: a head, a body, a receipt. To set a timer of the runtime and to take it back goes through what all
//! its threads share, and nearly every wait ends long before its time. So an alarm that is set stays: it rings at the earliest time that was
//! asked for, once in seconds, and whoever waits longer sets it again.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, Sleep, sleep_until};

/// What is waited for longer is waited for so long.
const FAR: Duration = Duration::from_secs(365 * 86_400);

/// The alarm of one connection; clones are the same. INVARIANT: one task alone waits by it, so that whoever it wakes is that task.
#[derive(Clone, Debug, Default)]
pub struct Alarm(Arc<Mutex<Option<Pin<Box<Sleep>>>>>);

impl Alarm {
    /// Ready once `deadline` has passed. Until then the task is woken in time to ask again, and perhaps before.
    pub fn poll_until(&self, deadline: Instant, context: &mut Context<'_>) -> Poll<()> {
        let mut held = self.0.lock();
        let alarm = held.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if alarm.deadline() > deadline {
            alarm.as_mut().reset(deadline);
        }
        while alarm.as_mut().poll(context).is_ready() {
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            alarm.as_mut().reset(deadline);
        }
        Poll::Pending
    }

    /// What `future` comes to; None if that takes longer than `most`.
    pub(crate) fn within<F: Future + Unpin>(&self, most: Duration, future: F) -> Within<'_, F> {
        Within { alarm: self, most, deadline: None, future }
    }
}

/// A future that is waited for no longer than its alarm allows.
#[derive(Debug)]
pub(crate) struct Within<'alarm, F> {
    alarm: &'alarm Alarm,
    most: Duration,
    /// From when it was first not ready.
    deadline: Option<Instant>,
    future: F,
}

impl<F: Future + Unpin> Future for Within<'_, F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Poll::Ready(output) = Pin::new(&mut self.future).poll(context) {
            return Poll::Ready(Some(output));
        }
        let most = self.most;
        let deadline = *self.deadline.get_or_insert_with(|| {
            let now = Instant::now();
            now.checked_add(most).unwrap_or(now + FAR)
        });
        self.alarm.poll_until(deadline, context).map(|()| None)
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    const SOON: Duration = Duration::from_millis(20);
    /// Longer than any test may take.
    const LONG: Duration = Duration::from_secs(3600);

    fn after(time: Duration) -> Pin<Box<Sleep>> {
        Box::pin(tokio::time::sleep(time))
    }

    #[tokio::test]
    async fn what_is_ready_or_becomes_so_is_had_and_what_does_not_is_given_up() {
        let alarm = Alarm::default();
        assert_eq!(alarm.within(SOON, ready(7)).await, Some(7));
        assert_eq!(alarm.within(LONG, after(SOON)).await, Some(()));
        assert_eq!(alarm.within(SOON, pending::<()>()).await, None);
        assert_eq!(alarm.within(Duration::ZERO, pending::<()>()).await, None);
        assert_eq!(alarm.within(Duration::MAX, after(SOON)).await, Some(()));
    }

    #[tokio::test]
    async fn a_short_wait_behind_a_long_one_ends_in_its_own_time() {
        let alarm = Alarm::default();
        assert_eq!(alarm.within(LONG, after(SOON)).await, Some(()));
        assert_eq!(alarm.within(SOON, pending::<()>()).await, None);
    }

    #[tokio::test]
    async fn an_alarm_that_rings_for_an_earlier_wait_ends_no_later_one() {
        let alarm = Alarm::default();
        // Set, and the wait is over before it rings.
        assert_eq!(alarm.within(SOON * 2, after(SOON)).await, Some(()));
        assert_eq!(alarm.within(LONG, after(SOON * 5)).await, Some(()));
        // It has rung, and is set once more.
        assert_eq!(alarm.within(SOON, pending::<()>()).await, None);
        assert_eq!(alarm.within(LONG, after(SOON)).await, Some(()));
        assert_eq!(alarm.within(SOON, pending::<()>()).await, None);
    }
}
