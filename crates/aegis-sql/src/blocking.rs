//! Runs a future to its end on the calling thread, without a runtime.
//! Planning and evaluating over data in memory never wait for I/O, so this needs no reactor and works inside any runtime.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

use tokio::task::coop::unconstrained;

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// The future's output. Parks the thread while the future is pending. INVARIANT: the budget of a task that this is called in does not count
/// here: DataFusion's streams ask for it, and whoever has used it up is woken by the scheduler, which waits for this very thread.
pub fn block_on<F: Future>(future: F) -> F::Output {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(unconstrained(future));
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::task::coop::{consume_budget, has_budget_remaining};

    #[tokio::test]
    async fn a_run_goes_on_in_a_task_that_has_used_up_its_budget() {
        while has_budget_remaining() {
            consume_budget().await;
        }
        let done = block_on(async {
            consume_budget().await;
            7
        });
        assert_eq!(done, 7);
    }
}
