//! What a record of a rule that was filled, and a start behind one, waits for: what lies before, once more.
//! Promises that nobody's ticks wait longer than for a message that must be there, nor for one answer after the other where none comes; and that where
//! there is none, the rules wait until they know their windows.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use aegis_ledger::verify::LaneHeads;
use aegis_model::{RuleWarmRecord, SecurityEvent, TenantId, Timestamp};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{MOST, PastAsked, PastLanes, WarmUp, Whose};
use crate::back::reach_of;
use crate::checkpoint::{Checkpoint, MAX_REWIND};
use crate::follow::Running;
use crate::plan::RulePlan;
use crate::sieve::Sieve;

/// Who was waited for in vain is not waited for again for so many times as long.
const RESTS: u32 = 30;
/// So many records are remembered for which was waited in vain.
const MOST_IN_VAIN: usize = 1024;
/// How long a restart waits for all that filled rules need.
pub(super) const RESTART_WAIT: Duration = Duration::from_secs(60);

/// Tenants that need something share what a start reads at most: each has its part of it first, and who needs more has, behind all others, what they left. So
/// nobody's flood takes the room of another.
#[derive(Debug)]
pub(super) struct Turns<T> {
    waiting: VecDeque<T>,
    /// Who needs more than a part.
    behind: VecDeque<T>,
    is_first: bool,
    room: usize,
}

impl<T> Turns<T> {
    pub(super) fn new(tenants: Vec<T>, room: usize) -> Self {
        Self { waiting: tenants.into(), behind: VecDeque::new(), is_first: true, room }
    }

    /// The next one, and how many events it may have.
    pub(super) fn take(&mut self) -> Option<(T, usize)> {
        if self.waiting.is_empty() && self.is_first {
            (self.waiting, self.is_first) = (std::mem::take(&mut self.behind), false);
        }
        let part = if self.is_first { self.room / self.waiting.len().max(1) } else { self.room };
        Some((self.waiting.pop_front()?, part.min(MOST)))
    }

    /// So many were read.
    pub(super) fn fill(&mut self, events: usize) {
        self.room = self.room.saturating_sub(events);
    }

    /// True if who needs more than that has another turn.
    pub(super) fn has_another(&self, most: usize) -> bool {
        self.is_first && most < MOST
    }

    /// That one comes once more, behind all others.
    pub(super) fn put_behind(&mut self, one: T) {
        self.behind.push_back(one);
    }
}

impl WarmUp {
    /// Waits for what lies before, of no more than so many events.
    async fn read(
        &mut self,
        tenant: &TenantId,
        (from, to): (Timestamp, Timestamp),
        most: usize,
        sieve: Option<Arc<Sieve>>,
    ) -> Option<Vec<SecurityEvent>> {
        let past = self.past.clone()?;
        let too_much = || "there is more than a rule may keep".to_owned();
        let asked = PastAsked { most, ..PastAsked::in_time(tenant, from, to, sieve) };
        let read = self.wait_for(|| past.ask(asked)).await;
        or_none(tenant, read.and_then(|events| events.ok_or_else(too_much)))
    }

    /// True while somebody was waited for in vain just now.
    fn waits_for_nobody(&self) -> bool {
        self.waits_again_at.is_some_and(|at| Instant::now() < at)
    }

    /// True of a record for which ticks waited in this life, and nothing could be read.
    fn waited_in_vain(&self, whose: Whose, record: &RuleWarmRecord) -> bool {
        self.in_vain.iter().any(|(known, before)| *known == whose && before == record)
    }

    fn note_in_vain(&mut self, whose: Whose, record: &RuleWarmRecord) {
        if self.in_vain.len() >= MOST_IN_VAIN {
            self.in_vain.pop_front();
        }
        self.in_vain.push_back((whose, record.clone()));
    }

    /// Waits until the lanes of what was read are followed.
    async fn follow(&mut self, lanes: PastLanes) -> Option<Vec<SecurityEvent>> {
        let (receipts, tenant) = (self.receipts.clone()?, lanes.tenant().clone());
        let followed = self.wait_for(|| receipts.follow(lanes)).await;
        or_none(&tenant, followed.and_then(|shown| shown))
    }

    /// Waits for an answer, at most as long as for a message that must be there: a log that is read again says that it can be read. Who was waited for in
    /// vain is not for a while: such a log has many rules that were filled, and nobody's ticks wait for each of them.
    pub(super) async fn wait_for<T>(&mut self, ask: impl FnOnce() -> oneshot::Receiver<Result<T, String>>) -> Result<T, String> {
        let begun = Instant::now();
        if self.waits_for_nobody() {
            return Err("nobody answered just now, and is not asked again for a while".to_owned());
        }
        let reason = match tokio::time::timeout(self.patience, ask()).await {
            Ok(Ok(Ok(answer))) => return Ok(answer),
            Ok(Ok(Err(reason))) => reason,
            Ok(Err(_)) | Err(_) => "nobody answers".to_owned(),
        };
        self.waits_again_at = Some(Instant::now() + begun.elapsed() * RESTS);
        Err(reason)
    }
}

/// What was read; where it could not be, why is said.
fn or_none(tenant: &TenantId, read: Result<Vec<SecurityEvent>, String>) -> Option<Vec<SecurityEvent>> {
    let told = |reason: &String| {
        tracing::warn!(%tenant, reason, "what lies before a rule cannot be read; it waits until it knows its window");
    };
    read.inspect_err(told).ok()
}

impl Running {
    /// What was read for a record, or is now, where another life had it put there. None: it cannot be, and the rule waits.
    pub(super) async fn past_of_record(
        &mut self,
        read: Option<Vec<SecurityEvent>>,
        (whose, record): (Whose, &RuleWarmRecord),
        (from, to): (Timestamp, Timestamp),
        contains: bool,
        sieve: Option<Arc<Sieve>>,
    ) -> Option<Vec<SecurityEvent>> {
        if read.is_some() {
            return read;
        }
        let tenant = &record.tenant_id;
        // What of a log was lost is in neither part.
        if self.is_gone(tenant, from) || self.warm.waited_in_vain(whose, record) {
            return None;
        }
        let is_asked = !self.warm.waits_for_nobody();
        let heads = contains.then(|| self.stage.heads().of_tenant_since(tenant.as_str(), from));
        let past = self.read_past(tenant, (from, to), MOST, heads, sieve).await;
        if past.is_none() && is_asked {
            self.warm.note_in_vain(whose, record);
        }
        past
    }

    /// Waits for what lies before; where a rule contains, until its lanes are followed up to these heads.
    async fn read_past(
        &mut self,
        tenant: &TenantId,
        (from, to): (Timestamp, Timestamp),
        most: usize,
        heads: Option<LaneHeads>,
        sieve: Option<Arc<Sieve>>,
    ) -> Option<Vec<SecurityEvent>> {
        if from >= to {
            return Some(Vec::new());
        }
        let events = self.warm.read(tenant, (from, to), most, sieve).await?;
        let Some(heads) = heads else { return Some(events) };
        let lanes = PastLanes::new(tenant.clone(), (from, to), events, heads, self.warm.hold_ms);
        self.warm.follow(lanes).await
    }

    /// What filled rules need, beside the events that are read again after a restart: of each tenant what its rules look back to, and neither the stream nor
    /// the checkpoint has.
    /// Where that cannot be read they wait anew.
    pub(crate) async fn past_of_filled(&mut self, checkpoint: &Checkpoint) -> Vec<SecurityEvent> {
        let own = self.own.known.values().filter(|known| known.is_filled).filter_map(|known| {
            let running = self.engine.own_rule(&known.tenant_id, &known.rule_id)?;
            Some((&known.tenant_id, running, known.held.unwrap_or(i64::MIN)))
        });
        let mut spans: BTreeMap<TenantId, (Timestamp, Timestamp, bool, Vec<&RulePlan>)> = BTreeMap::new();
        for (tenant, running, held) in own.chain(self.filled_of_every_tenant()) {
            if checkpoint.engine.has_far(running, tenant) {
                continue;
            }
            let Some(settled) = checkpoint.engine.settled_to(tenant) else { continue };
            let (from, to) = (settled.plus_micros(-reach_of(running)), Timestamp::from_micros(held));
            if from < to {
                let (first, last, contains, plans) = spans.entry(tenant.clone()).or_insert((from, to, false, Vec::new()));
                (*first, *last) = (from.min(*first), to.max(*last));
                *contains |= running.rule.header.contains();
                plans.push(&running.plan);
            }
        }
        let sifted = |(tenant, (from, to, contains, plans)): (TenantId, (Timestamp, Timestamp, bool, Vec<&RulePlan>))| {
            let sieve = (!contains).then(|| Arc::new(Sieve::of_plans(plans.into_iter())));
            (tenant, (from, to), contains, sieve)
        };
        let mut turns = Turns::new(spans.into_iter().map(sifted).collect(), MAX_REWIND);
        let (mut all, begun) = (Vec::new(), Instant::now());
        while let Some((span, most)) = turns.take() {
            let (tenant, (from, to), contains, sieve) = &span;
            // That one's does not come says nothing of the others'.
            self.warm.waits_again_at = None;
            // All rules of a tenant are shown the same: what is followed for one is for all.
            let heads = contains.then(|| checkpoint.heads.of_tenant_since(tenant.as_str(), *from));
            let past = if begun.elapsed() < RESTART_WAIT {
                self.read_past(tenant, (*from, *to), most, heads, sieve.clone()).await
            } else {
                None
            };
            match past.filter(|events| events.len() <= most) {
                Some(events) => {
                    turns.fill(events.len());
                    all.extend(events);
                }
                None if turns.has_another(most) => turns.put_behind(span),
                None => self.wait_anew(tenant),
            }
        }
        all
    }

    /// The filled rules of a tenant wait until they know their windows by themselves.
    fn wait_anew(&mut self, tenant: &TenantId) {
        for known in self.own.known.values_mut().filter(|known| known.is_filled && known.tenant_id == *tenant) {
            let whole = known.whole.unwrap_or(known.since);
            (known.since, known.is_filled) = (whole, false);
            self.engine.set_since(&known.tenant_id, &known.rule_id, whole, None);
        }
        self.wait_anew_of_every_tenant(tenant);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use parking_lot::Mutex;

    use super::super::{Past, PastEvents, Wanted};
    use super::*;

    /// Answers nobody, and keeps who waits.
    #[derive(Debug, Default)]
    struct Hangs {
        waiting: Mutex<Vec<oneshot::Sender<Past>>>,
        fails: Mutex<bool>,
    }

    impl PastEvents for Hangs {
        fn consumer(&self) -> &'static str {
            "hangs"
        }

        fn ask(&self, _asked: PastAsked) -> oneshot::Receiver<Past> {
            let (sender, answer) = oneshot::channel();
            if *self.fails.lock() {
                sender.send(Ok(None)).unwrap();
            } else {
                self.waiting.lock().push(sender);
            }
            answer
        }
    }

    /// The attack: a tenant, or some, have as much as a rule may keep, so that a start reads nothing of those behind them.
    #[test]
    fn what_a_start_reads_is_shared_by_tenants_and_what_one_leaves_is_the_others() {
        let needed = [MOST, MOST, MOST, 1000, 10, MOST];
        let (mut turns, mut read) = (Turns::new((0..needed.len()).collect(), MAX_REWIND), [0; 6]);
        let mut had = 0;
        while let Some((tenant, most)) = turns.take() {
            had += 1;
            if needed[tenant] <= most {
                read[tenant] = needed[tenant];
                turns.fill(needed[tenant]);
            } else if turns.has_another(most) {
                turns.put_behind(tenant);
            }
        }
        assert!((needed.len()..=2 * needed.len()).contains(&had), "each has two turns at most: {had}");
        // Whoever has little has all of it; of the others as many as there is room for.
        assert_eq!(read, [MOST, 0, 0, 1000, 10, MOST]);
        let mut alone = Turns::new(vec!["one"], MAX_REWIND);
        assert_eq!((alone.take(), alone.has_another(MOST)), (Some(("one", MOST)), false), "it has all that a rule may keep");
        alone.fill(MAX_REWIND - 5);
        alone.put_behind("one");
        assert_eq!((alone.take(), alone.take()), (Some(("one", 5)), None));
    }

    /// A lane of which the history has no more what is needed is asked for again and again: others come first.
    #[test]
    fn whose_past_cannot_be_read_keeps_nobody_from_his_turn() {
        let wanted = |name: &str| {
            let record = RuleWarmRecord { tenant_id: TenantId::new(name).unwrap(), rule_id: "T-1".into(), revision: 1 };
            let (whose, from, to) = (Whose::EveryTenant, Timestamp::from_micros(0), Timestamp::from_micros(9));
            Wanted { whose, record, from, to, behind: 0, contains: true, failures: 0, rests_until: None }
        };
        let next = |warm: &mut WarmUp, at: Instant| warm.take_next(at).map(|wanted| wanted.record.tenant_id.to_string());
        let mut warm = WarmUp::new(None, None);
        for name in ["acme", "beta"] {
            warm.want(wanted(name));
        }
        let acme = warm.take_next(Instant::now()).unwrap();
        warm.try_again(acme, "on purpose");
        assert_eq!(warm.fresh(), 1, "it takes nobody's place");
        assert_eq!(next(&mut warm, Instant::now()).as_deref(), Some("beta"));
        assert_eq!(next(&mut warm, Instant::now()), None, "the one that failed is left alone for a while");
        for name in ["beta", "gamma"] {
            warm.want(wanted(name));
        }
        let later = Instant::now() + Duration::from_secs(3);
        let order: Vec<String> = std::iter::from_fn(|| next(&mut warm, later)).collect();
        assert_eq!(order, ["beta", "gamma", "acme"]);
    }

    /// A log that is read again has a record of each rule that was filled.
    #[tokio::test]
    async fn beside_who_does_not_answer_records_of_filled_rules_are_not_waited_for_one_by_one() {
        let hangs = Arc::new(Hangs::default());
        let mut warm = WarmUp::new(Some(hangs.clone()), None);
        warm.patience = Duration::from_millis(200);
        let (tenant, span) = (TenantId::new("acme").unwrap(), (Timestamp::from_micros(0), Timestamp::from_micros(9)));
        let begun = Instant::now();
        for _ in 0..1000 {
            assert!(warm.read(&tenant, span, MOST, None).await.is_none());
        }
        assert!(begun.elapsed() < warm.patience * RESTS, "it took {:?}", begun.elapsed());
        assert_eq!(hangs.waiting.lock().len(), 1, "one was waited for");
        tokio::time::sleep(warm.patience * (RESTS + 2)).await;
        assert!(warm.read(&tenant, span, MOST, None).await.is_none());
        assert_eq!(hangs.waiting.lock().len(), 2, "after a while it is tried again");
        // Whoever says that there is too much has answered.
        let mut warm = WarmUp::new(Some(hangs.clone()), None);
        *hangs.fails.lock() = true;
        assert!(warm.read(&tenant, span, MOST, None).await.is_none());
        assert!(warm.waits_again_at.is_none());
    }
}
