//! Turns: no more of the work behind the action path computes at once than leaves half of the cores to those who answer.
//! A lower priority alone does not: a thread of it that runs keeps its core until its slice is over, and two of them keep two.

use std::sync::LazyLock;

use tokio::sync::{Semaphore, SemaphorePermit};

static TURNS: LazyLock<Semaphore> = LazyLock::new(|| Semaphore::new(turns(cores())));

/// Whoever has it may compute. To be held over computing, and over nothing that waits for another thread's work of this kind, for a network, or
/// for room somewhere: it is given back before that.
#[derive(Debug)]
pub struct Turn(#[allow(dead_code)] Option<SemaphorePermit<'static>>);

/// Waits for a turn, behind those who came before.
pub async fn turn() -> Turn {
    if std::env::var_os("AEGIS_NO_TURNS").is_some() {
        return Turn(None);
    }
    // Nobody closes it.
    Turn(TURNS.acquire().await.ok())
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
    use super::*;

    #[test]
    fn half_of_the_cores_are_left_and_one_turn_there_always_is() {
        assert_eq!([1, 2, 3, 4, 7, 64].map(turns), [1, 1, 1, 2, 3, 32]);
    }

    #[tokio::test]
    async fn there_are_no_more_turns_than_that_and_they_come_back() {
        let mut held = Vec::new();
        for _ in 0..turns(cores()) {
            held.push(turn().await);
        }
        let next = tokio::spawn(turn());
        tokio::task::yield_now().await;
        assert!(!next.is_finished(), "all turns are taken");
        held.pop();
        let _came = next.await.unwrap();
    }
}
