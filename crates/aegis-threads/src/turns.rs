//! Turns: no more of the work behind the action path computes at once than leaves half of the cores to those who answer.
//! A lower priority alone does not: a thread of it that runs keeps its core until its slice is over, and two of them keep two.

use std::sync::LazyLock;
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

/// Longest wait for a turn. A turn spares those who answer; a rule that takes its time, or a disk that does not answer, must not stop the history
/// and what people decide by it.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

static TURNS: LazyLock<Semaphore> = LazyLock::new(|| Semaphore::new(turns(cores())));

/// Whoever has it may compute. To be held over computing, and over nothing that waits for another thread's work of this kind, for a network, or
/// for room somewhere: it is given back before that.
#[derive(Debug)]
pub struct Turn {
    _permit: Option<SemaphorePermit<'static>>,
}

/// Waits for a turn, behind those who came before. Whoever has waited for a second goes on without one.
pub async fn turn() -> Turn {
    // Nobody closes it.
    Turn { _permit: timeout(LONGEST_WAIT, TURNS.acquire()).await.ok().and_then(Result::ok) }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

const fn turns(cores: usize) -> usize {
    if cores < 4 { 1 } else { cores / 2 }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn half_of_the_cores_are_left_and_one_turn_there_always_is() {
        assert_eq!([1, 2, 3, 4, 7, 64].map(turns), [1, 1, 1, 2, 3, 32]);
    }

    #[tokio::test]
    async fn there_are_no_more_turns_than_that_they_come_back_and_nobody_waits_for_good() {
        let mut held = Vec::new();
        for _ in 0..turns(cores()) {
            held.push(turn().await);
        }
        let next = tokio::spawn(turn());
        tokio::task::yield_now().await;
        assert!(!next.is_finished(), "all turns are taken");
        held.pop();
        let _came = next.await.unwrap();
        assert_eq!(TURNS.available_permits(), 0, "it has the one that came back");
        // Nobody gives one back.
        let asked = Instant::now();
        let _without = turn().await;
        assert!(asked.elapsed() >= LONGEST_WAIT, "it did not wait for its turn");
    }
}
