//! What is asked of detection from outside its thread. Promises that the detector answers between two ticks, from what it has, and that nobody is waited for:
//! who asks waits for a moment, and so many ask at once.

use std::time::Duration;

use aegis_model::TenantId;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// Who asks at once, and how many of them ask for one tenant; others are told that nobody answers.
const MOST_ASKED: usize = 64;
const MOST_ASKED_OF_ONE: usize = 8;
/// How long an answer is waited for: as long as detection looks at a batch, or reads its log again, it gives none.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where questions of one kind wait.
#[derive(Debug)]
pub struct Asked<W, A> {
    questions: Mutex<Vec<Question<W, A>>>,
}

#[derive(Debug)]
struct Question<W, A> {
    tenant: TenantId,
    what: W,
    answer: oneshot::Sender<A>,
}

impl<W, A> Default for Asked<W, A> {
    fn default() -> Self {
        Self { questions: Mutex::new(Vec::new()) }
    }
}

impl<W, A> Asked<W, A> {
    /// What detection answers of a tenant. None where it does not answer now.
    pub(crate) async fn ask(&self, tenant: &TenantId, what: W) -> Option<A> {
        let (answer, answered) = oneshot::channel();
        if !self.put(Question { tenant: tenant.clone(), what, answer }) {
            return None;
        }
        timeout(PATIENCE, answered).await.ok()?.ok()
    }

    fn put(&self, question: Question<W, A>) -> bool {
        let mut questions = self.questions.lock();
        questions.retain(|other| !other.answer.is_closed());
        let of_tenant = questions.iter().filter(|other| other.tenant == question.tenant).count();
        let has_room = questions.len() < MOST_ASKED && of_tenant < MOST_ASKED_OF_ONE;
        if has_room {
            questions.push(question);
        }
        has_room
    }

    pub(crate) fn answer(&self, answer_to: impl Fn(&TenantId, W) -> A) {
        let questions = std::mem::take(&mut *self.questions.lock());
        // Who has left needs no answer.
        for Question { tenant, what, answer } in questions.into_iter().filter(|question| !question.answer.is_closed()) {
            let _nobody_waits = answer.send(answer_to(&tenant, what));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_asks_is_answered_or_waits_for_a_moment_and_so_many_ask_at_once() {
        let (asked, tenant) = (Asked::<u8, String>::default(), TenantId::new("a").unwrap());
        assert!(timeout(Duration::from_millis(10), asked.ask(&tenant, 1)).await.is_err(), "it waits for an answer");
        let answer_to = |tenant: &TenantId, what: u8| format!("{tenant} {what}");
        let (answered, ()) = tokio::join!(asked.ask(&tenant, 2), async { asked.answer(answer_to) });
        assert_eq!(answered, Some("a 2".to_owned()));
        assert!(asked.questions.lock().is_empty());
        // Who does not wait any more keeps no place.
        let asks = |tenant: &TenantId| {
            let (answer, answered) = oneshot::channel();
            asked.put(Question { tenant: tenant.clone(), what: 3, answer }).then_some(answered)
        };
        let waiting: Vec<_> = (0..MOST_ASKED)
            .map(|n| {
                let another = TenantId::new(&format!("t-{}", n / MOST_ASKED_OF_ONE)).unwrap();
                let answered = asks(&another).unwrap();
                let is_its_last = n % MOST_ASKED_OF_ONE == MOST_ASKED_OF_ONE - 1;
                assert!(!is_its_last || asks(&another).is_none(), "one tenant takes no other's place");
                answered
            })
            .collect();
        assert_eq!(asked.ask(&tenant, 4).await, None, "too many ask");
        drop(waiting);
        let (answered, ()) = tokio::join!(asked.ask(&tenant, 5), async { asked.answer(answer_to) });
        assert_eq!(answered, Some("a 5".to_owned()));
    }
}
