//! Which rules do not know all of their window of a tenant yet, and tell nothing of it, for whoever asks from outside the detector's thread. Promises that the
//! detector answers between two ticks, from what it has, and that nobody is waited for: who asks waits for a moment, and so many ask at once.

use std::time::Duration;

use aegis_model::{TenantId, Timestamp};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::follow::Running;

/// Who asks at once, and how many of them ask for one tenant; others are told that nobody answers.
const MOST_ASKED: usize = 64;
const MOST_ASKED_OF_ONE: usize = 8;
/// How long an answer is waited for: as long as detection looks at a batch, or reads its log again, it gives none.
const PATIENCE: Duration = Duration::from_secs(5);

/// A rule that waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RuleWait {
    pub rule_id: String,
    pub name: String,
    pub version: u32,
    /// True of a tenant's own.
    pub own: bool,
    /// Once the log is so far, the rule knows its window by itself, if nothing fills it before.
    pub knows_at: Timestamp,
}

/// Where it is asked.
#[derive(Debug, Default)]
pub struct RuleWaits {
    asked: Mutex<Vec<Question>>,
}

#[derive(Debug)]
struct Question {
    tenant: TenantId,
    answer: oneshot::Sender<Vec<RuleWait>>,
}

impl RuleWaits {
    /// The rules that wait of a tenant, by id. None where detection does not answer now.
    pub async fn of(&self, tenant: &TenantId) -> Option<Vec<RuleWait>> {
        let (answer, answered) = oneshot::channel();
        if !self.ask(Question { tenant: tenant.clone(), answer }) {
            return None;
        }
        timeout(PATIENCE, answered).await.ok()?.ok()
    }

    fn ask(&self, question: Question) -> bool {
        let mut asked = self.asked.lock();
        asked.retain(|question| !question.answer.is_closed());
        let of_tenant = asked.iter().filter(|other| other.tenant == question.tenant).count();
        let has_room = asked.len() < MOST_ASKED && of_tenant < MOST_ASKED_OF_ONE;
        if has_room {
            asked.push(question);
        }
        has_room
    }

    pub(crate) fn answer(&self, waits: impl Fn(&TenantId) -> Vec<RuleWait>) {
        let asked = std::mem::take(&mut *self.asked.lock());
        for Question { tenant, answer } in asked {
            let _nobody_waits = answer.send(waits(&tenant));
        }
    }
}

impl Running {
    /// The rules that do not know all of their window of a tenant.
    pub(crate) fn waits_of(&self, tenant: &TenantId) -> Vec<RuleWait> {
        let Some(stored) = self.stored else { return Vec::new() };
        let covering = self.engine.rules.iter().filter(|running| running.scope.covers(tenant));
        let waiting = covering.filter_map(|running| {
            let header = &running.rule.header;
            let knows_at = running.since.of(tenant);
            (knows_at > stored).then(|| RuleWait {
                rule_id: header.id.clone(),
                name: header.name.clone(),
                version: header.version,
                own: running.scope.owner().is_some(),
                knows_at,
            })
        });
        let mut waiting: Vec<RuleWait> = waiting.collect();
        waiting.sort_unstable_by(|one, other| one.rule_id.cmp(&other.rule_id));
        waiting
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_asks_is_answered_or_waits_for_a_moment_and_so_many_ask_at_once() {
        let (waits, tenant) = (RuleWaits::default(), TenantId::new("a").unwrap());
        assert!(timeout(Duration::from_millis(10), waits.of(&tenant)).await.is_err(), "it waits for an answer");
        let wait = |tenant: &TenantId| RuleWait {
            rule_id: "R-1".to_owned(),
            name: tenant.to_string(),
            version: 1,
            own: true,
            knows_at: Timestamp::from_micros(7),
        };
        let (answered, ()) = tokio::join!(waits.of(&tenant), async { waits.answer(|tenant| vec![wait(tenant)]) });
        assert_eq!(answered, Some(vec![wait(&tenant)]));
        assert!(waits.asked.lock().is_empty());
        // Who does not wait any more keeps no place.
        let asks = |tenant: &TenantId| {
            let (answer, answered) = oneshot::channel();
            waits.ask(Question { tenant: tenant.clone(), answer }).then_some(answered)
        };
        let asked: Vec<_> = (0..MOST_ASKED)
            .map(|n| {
                let another = TenantId::new(&format!("t-{}", n / MOST_ASKED_OF_ONE)).unwrap();
                let answered = asks(&another).unwrap();
                let is_its_last = n % MOST_ASKED_OF_ONE == MOST_ASKED_OF_ONE - 1;
                assert!(!is_its_last || asks(&another).is_none(), "one tenant takes no other's place");
                answered
            })
            .collect();
        assert_eq!(waits.of(&tenant).await, None, "too many ask");
        drop(asked);
        let (answered, ()) = tokio::join!(waits.of(&tenant), async { waits.answer(|_| Vec::new()) });
        assert_eq!(answered, Some(Vec::new()));
    }
}
