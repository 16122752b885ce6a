//! What edges are told of each other's runs: the strictest label of a run, signed, in the bucket `trust`. Labels only ever tighten what an edge
//! makes of a run, so that an event nobody has verified yet can do no more than that, and only to runs of its own tenant.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aegis_bus::feed::{FeedPage, fill};
use aegis_bus::{Bucket, BusError, subject};
use aegis_keys::{Scope, sign_notice, verify_notice};
use aegis_model::{EventKind, MAX_RUN_IDLE_S, RunLabel, SourceTrust, TenantId, Timestamp, Unmarked};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::{Duration, Instant, sleep};

use crate::control::Control;
use crate::given_way::{GivenWay, WHOEVER};
use crate::input::MAX_ID;

/// Runs of one tenant that are remembered; past it those are forgotten that have ended, then the least strict, then those whose last call is longest
/// ago, of that tenant alone.
const MOST_RUNS: usize = 20_000;
/// Longest name of a run that is told of, bytes: any that an edge admits, which counts characters, with what stands before it.
const MAX_RUN: usize = 4 * MAX_ID + 64;
/// A run that goes on is told again after this time, so that edges do not take it for idle, microseconds.
const AGAIN_US: i64 = 60_000_000;
/// How often it is told at most that labels are forgotten.
const WARN_EVERY: Duration = Duration::from_secs(60);
/// Before a label that the bus refused is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// The labels of runs, by their key in the bucket.
#[derive(Debug, Default)]
pub(crate) struct Labels {
    runs: Mutex<Runs>,
    changed: Notify,
    /// What an earlier start has told was read: nothing is missing.
    is_whole: AtomicBool,
    /// When it was told last that labels are forgotten.
    warned: Mutex<Option<Instant>>,
}

#[derive(Debug, Default)]
struct Runs {
    known: BTreeMap<String, Run>,
    /// By tenant: label, time of the last call, and key.
    order: HashMap<TenantId, BTreeSet<Place>>,
    /// By tenant, in the order in which they came; none is empty. Tenants take turns.
    to_tell: BTreeMap<TenantId, VecDeque<String>>,
    /// Whose turn it was last.
    told_last: Option<TenantId>,
    /// By tenant: which of its runs gave way that the bucket still has, within the last day.
    gone: HashMap<TenantId, GivenWay>,
    /// Runs that last and were forgotten, or not taken in, since this was read last.
    forgotten: u64,
}

type Place = (SourceTrust, i64, String);

#[derive(Debug)]
struct Run {
    label: RunLabel,
    waits: bool,
    /// When the bucket lets go of it at the latest, by control's clock: what an edge says of the time of a call changes nothing of that.
    kept_until: i64,
    /// As it was told last: when, and the entry.
    told: Option<(i64, Bytes, u64)>,
}

impl Runs {
    /// Takes what a call of `agent` was judged by. True if edges are to be told.
    fn take(&mut self, key: String, label: RunLabel, agent: &str, now: Timestamp) -> bool {
        let at = label.at.as_micros();
        if !self.known.contains_key(&key) && !self.make_room(&label, agent, now) {
            return false;
        }
        let order = self.order.entry(label.tenant_id.clone()).or_default();
        let fresh = || Run { label: label.clone(), waits: false, kept_until: kept_until(now), told: None };
        let run = self.known.entry(key.clone()).or_insert_with(fresh);
        let tightened = run.label.source_trust < label.source_trust;
        order.remove(&(run.label.source_trust, run.label.at.as_micros(), key.clone()));
        run.label.source_trust = run.label.source_trust.combine(label.source_trust);
        run.label.at = run.label.at.max(label.at);
        order.insert((run.label.source_trust, run.label.at.as_micros(), key.clone()));
        let is_due = run.told.as_ref().is_none_or(|(told_at, ..)| at.saturating_sub(*told_at) >= AGAIN_US);
        let tells = (tightened || is_due) && !run.waits;
        if tells {
            run.waits = true;
            self.to_tell.entry(label.tenant_id).or_default().push_back(key);
        }
        tells
    }

    /// Forgets a run of the tenant for the new one of `agent`, where there are too many; false if those are all stricter, or too many gave way.
    fn make_room(&mut self, new: &RunLabel, agent: &str, now: Timestamp) -> bool {
        let Some(order) = self.order.get_mut(&new.tenant_id).filter(|order| order.len() >= MOST_RUNS) else { return true };
        let ended_before = now.plus_seconds(-MAX_RUN_IDLE_S).as_micros();
        // The oldest of each label, the least strict first.
        let ended = SourceTrust::ALL
            .into_iter()
            .filter_map(|label| order.range((label, i64::MIN, String::new())..).next())
            .find(|(_, at, _)| *at < ended_before);
        let Some(goes) = ended.or_else(|| order.first()).cloned() else { return true };
        let lasts = goes.1 >= ended_before;
        self.forgotten += u64::from(lasts);
        if lasts && goes.0 > new.source_trust {
            return false;
        }
        // Ended or not, it takes up the bucket's room.
        if self.known.get(&goes.2).is_some_and(|run| run.kept_until > now.as_micros()) {
            let gone = self.gone.entry(new.tenant_id.clone()).or_default();
            gone.forget_before(ended_before);
            if goes.0 >= new.source_trust && !gone.has_room_for(agent) {
                self.forgotten += u64::from(!lasts);
                return false;
            }
            gone.note(agent, now.as_micros());
        }
        order.remove(&goes);
        self.known.remove(&goes.2);
        true
    }

    /// The next that is to be told of, of the tenant whose turn it is. One that was forgotten meanwhile is passed over.
    fn next(&mut self) -> Option<(String, RunLabel)> {
        loop {
            let last = self.told_last.as_ref();
            let behind =
                last.and_then(|last| self.to_tell.range::<TenantId, _>((Bound::Excluded(last), Bound::Unbounded)).next());
            let tenant = behind.or_else(|| self.to_tell.iter().next()).map(|(tenant, _)| tenant.clone())?;
            let waiting = self.to_tell.get_mut(&tenant)?;
            let key = waiting.pop_front();
            if waiting.is_empty() {
                self.to_tell.remove(&tenant);
            }
            self.told_last = Some(tenant);
            let Some(key) = key else { continue };
            if let Some(run) = self.known.get_mut(&key) {
                run.waits = false;
                return Some((key, run.label.clone()));
            }
        }
    }

    fn told(&mut self, key: &str, at: i64, bytes: Bytes, revision: u64, now: Timestamp) {
        if let Some(run) = self.known.get_mut(key) {
            run.told = Some((at, bytes, revision));
            run.kept_until = kept_until(now);
        }
    }

    /// Behind all others of its tenant, so that one which is refused holds up none.
    fn again(&mut self, key: String) {
        if let Some(run) = self.known.get_mut(&key).filter(|run| !run.waits) {
            run.waits = true;
            self.to_tell.entry(run.label.tenant_id.clone()).or_default().push_back(key);
        }
    }
}

/// When the bucket lets go of what is put there now.
fn kept_until(now: Timestamp) -> i64 {
    now.plus_seconds(MAX_RUN_IDLE_S).as_micros()
}

impl Labels {
    /// The page of a tenant's labels behind `after`.
    pub(crate) fn page(&self, tenant: &TenantId, after: &str) -> FeedPage {
        if !self.is_whole.load(Ordering::SeqCst) {
            return FeedPage::refused("the labels of runs are not read yet");
        }
        let first = format!("{tenant}.");
        let from = if after < first.as_str() { Bound::Included(first.clone()) } else { Bound::Excluded(after.to_owned()) };
        let runs = self.runs.lock();
        let of_tenant = runs.known.range((from, Bound::Unbounded)).take_while(|(key, _)| key.starts_with(&first));
        let told = of_tenant
            .filter_map(|(key, run)| run.told.as_ref().map(|(_, bytes, revision)| (key.as_str(), bytes.clone(), *revision)));
        fill(Bucket::Trust, told)
    }
}

impl Control {
    /// Notes what an edge made of a run. `signed` and `unsigned` are what a run begins with at best, and are not told of.
    pub(crate) fn label_run(&self, event: Unmarked<'_>) {
        let Some(source_trust) = event.source_trust() else { return };
        if event.kind() != EventKind::AuthorizeDecision
            || source_trust <= SourceTrust::TrustedInternalUnsigned
            || !self.has_far_edges()
        {
            return;
        }
        let run = match (event.run_id(), event.agent_id()) {
            (Some(run_id), _) => format!("run:{run_id}"),
            (None, Some(agent_id)) => format!("agent:{agent_id}"),
            (None, None) => return,
        };
        if run.len() > MAX_RUN {
            return;
        }
        // Nobody makes a run last by a time to come.
        let now = self.clock.now();
        let at = event.ts().min(now);
        if at < now.plus_seconds(-MAX_RUN_IDLE_S) {
            // It has ended everywhere.
            return;
        }
        let key = subject::kv_trust(event.tenant_id(), &run);
        let label = RunLabel { tenant_id: event.tenant_id().clone(), run, source_trust, at };
        let (tells, forgotten) = {
            let mut runs = self.labels.runs.lock();
            let agent = event.agent_id().filter(|agent| !agent.is_empty()).unwrap_or("unnamed");
            (runs.take(key, label, agent, now), std::mem::take(&mut runs.forgotten))
        };
        if tells {
            self.labels.changed.notify_one();
        }
        if forgotten > 0 {
            self.note_forgotten(event.tenant_id(), forgotten);
        }
    }

    fn note_forgotten(&self, tenant: &TenantId, forgotten: u64) {
        self.metrics.run_labels_forgotten.inc_by(forgotten);
        let mut warned = self.labels.warned.lock();
        if warned.is_none_or(|at| at.elapsed() >= WARN_EVERY) {
            *warned = Some(Instant::now());
            tracing::warn!(
                %tenant,
                most = MOST_RUNS,
                "a tenant has more runs with a label than are remembered: edges are no longer told of the least strict and the longest idle"
            );
        }
    }

    /// Reads what an earlier start has told.
    async fn read_labels(&self) -> Result<(), BusError> {
        for (key, bytes, revision) in self.bus.kv_all(Bucket::Trust, "*.*").await? {
            let Ok((label, signer)) = verify_notice::<RunLabel>(&self.ring, &bytes) else { continue };
            if signer.scope != Scope::Any || key != subject::kv_trust(&label.tenant_id, &label.run) {
                continue;
            }
            let (told_at, now) = (label.at.as_micros(), self.clock.now());
            let mut runs = self.labels.runs.lock();
            runs.told(&key, told_at, bytes.clone(), revision, now);
            runs.take(key.clone(), label, WHOEVER, now);
            runs.told(&key, told_at, bytes, revision, now);
        }
        self.labels.is_whole.store(true, Ordering::SeqCst);
        Ok(())
    }

    async fn tell_label(&self, key: &str, label: &RunLabel) -> Result<(), BusError> {
        let signed = sign_notice(&self.key, label).map_err(|error| BusError::Unavailable { reason: error.to_string() })?;
        let bytes = Bytes::from(signed);
        let revision = self.bus.kv_put(Bucket::Trust, key, bytes.clone()).await?;
        self.labels.runs.lock().told(key, label.at.as_micros(), bytes, revision, self.clock.now());
        Ok(())
    }
}

/// Tells edges of runs, until stopped.
pub(crate) async fn run(control: Arc<Control>, mut stop: watch::Receiver<bool>) {
    let telling = async {
        while let Err(error) = control.read_labels().await {
            tracing::warn!(%error, "what edges were told of runs cannot be read; trying again");
            sleep(RETRY).await;
        }
        loop {
            let next = control.labels.runs.lock().next();
            let Some((key, label)) = next else {
                control.labels.changed.notified().await;
                continue;
            };
            if let Err(error) = control.tell_label(&key, &label).await {
                tracing::warn!(%error, tenant = %label.tenant_id, "edges cannot be told of a run");
                if error.is_retryable() {
                    control.labels.runs.lock().again(key);
                    sleep(RETRY).await;
                }
            }
        }
    };
    tokio::select! {
        () = telling => {}
        _ = stop.changed() => {}
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::given_way::MOST_GONE;

    fn label(run: &str, trust: SourceTrust, second: i64) -> (String, RunLabel) {
        label_of("acme", run, trust, second)
    }

    fn label_of(tenant: &str, run: &str, trust: SourceTrust, second: i64) -> (String, RunLabel) {
        let tenant_id = TenantId::new(tenant).unwrap();
        let at = Timestamp::default().plus_seconds(second);
        (subject::kv_trust(&tenant_id, run), RunLabel { tenant_id, run: run.into(), source_trust: trust, at })
    }

    /// Takes it when the call was.
    fn take(runs: &mut Runs, key: String, label: RunLabel) -> bool {
        take_of("agent-1", runs, key, label)
    }

    fn take_of(agent: &str, runs: &mut Runs, key: String, label: RunLabel) -> bool {
        let now = label.at;
        runs.take(key, label, agent, now)
    }

    /// Takes it, and tells what is to be told.
    fn tells(runs: &mut Runs, (key, label): (String, RunLabel)) -> bool {
        let tells = take(runs, key.clone(), label);
        let next = runs.next();
        assert_eq!(tells, next.is_some());
        if let Some((told, label)) = next {
            assert_eq!(told, key);
            runs.told(&key, label.at.as_micros(), Bytes::new(), 1, label.at);
        }
        tells
    }

    #[test]
    fn a_run_is_told_of_when_its_label_tightens_and_while_it_goes_on() {
        use SourceTrust::{SemiTrustedCustomer, Unknown, UntrustedExternal};
        let mut runs = Runs::default();
        assert!(tells(&mut runs, label("r", Unknown, 0)));
        assert!(!tells(&mut runs, label("r", Unknown, 1)));
        assert!(!tells(&mut runs, label("r", SemiTrustedCustomer, 2)), "it never loosens");
        assert!(tells(&mut runs, label("r", UntrustedExternal, 3)));
        assert!(!tells(&mut runs, label("r", Unknown, 62)));
        assert!(tells(&mut runs, label("r", Unknown, 63)));
        let (key, _) = label("r", Unknown, 0);
        assert_eq!(runs.known[&key].label.source_trust, UntrustedExternal);
    }

    /// A full memory of runs, one a second.
    fn full(trust: SourceTrust) -> Runs {
        let mut runs = Runs::default();
        for n in 0..MOST_RUNS {
            let (key, label) = label(&format!("{n}"), trust, i64::try_from(n).unwrap());
            take(&mut runs, key, label);
        }
        runs
    }

    #[test]
    fn a_tenant_s_full_memory_forgets_its_run_that_rests_longest_and_nobody_else_s() {
        let mut runs = full(SourceTrust::Unknown);
        let (other, of_other) = label_of("other", "0", SourceTrust::Unknown, -1);
        take(&mut runs, other.clone(), of_other);
        let (first, second) = (label("0", SourceTrust::Unknown, 30_000), label("1", SourceTrust::Unknown, 0).0);
        take(&mut runs, first.0.clone(), first.1);
        let (key, new) = label("new", SourceTrust::Unknown, 30_001);
        take(&mut runs, key.clone(), new);
        assert!(runs.known.contains_key(&first.0) && runs.known.contains_key(&key) && runs.known.contains_key(&other));
        assert!(!runs.known.contains_key(&second));
        assert_eq!((runs.known.len(), runs.forgotten), (MOST_RUNS + 1, 1));
    }

    #[test]
    fn a_full_memory_forgets_no_strict_label_for_one_that_is_less() {
        let mut runs = full(SourceTrust::UntrustedExternal);
        let (oldest, _) = label("0", SourceTrust::Unknown, 0);
        let (weak, label_of_weak) = label("weak", SourceTrust::Unknown, 30_000);
        assert!(!take(&mut runs, weak.clone(), label_of_weak));
        assert!(!runs.known.contains_key(&weak) && runs.known.contains_key(&oldest));
        let (strict, label_of_strict) = label("strict", SourceTrust::MaliciousSuspected, 30_001);
        assert!(take(&mut runs, strict.clone(), label_of_strict));
        assert!(runs.known.contains_key(&strict) && !runs.known.contains_key(&oldest));
        assert_eq!((runs.known.len(), runs.forgotten), (MOST_RUNS, 2));
    }

    #[test]
    fn a_full_memory_forgets_weak_labels_first_and_before_them_what_has_ended() {
        let mut runs = full(SourceTrust::Unknown);
        let (strict, label_of_strict) = label("0", SourceTrust::UntrustedExternal, 0);
        take(&mut runs, strict.clone(), label_of_strict);
        let (key, new) = label("new", SourceTrust::SemiTrustedCustomer, 80_000);
        assert!(!take(&mut runs, key, new), "all others are stricter");
        let (key, new) = label("new", SourceTrust::Unknown, 80_000);
        assert!(take(&mut runs, key.clone(), new));
        assert!(runs.known.contains_key(&strict) && !runs.known.contains_key(&label("1", SourceTrust::Unknown, 0).0));
        assert_eq!(runs.forgotten, 2);
        let (key, new) = label("newer", SourceTrust::SemiTrustedCustomer, MAX_RUN_IDLE_S + 1);
        assert!(take(&mut runs, key, new));
        assert!(!runs.known.contains_key(&strict), "it has ended");
        assert_eq!((runs.known.len(), runs.forgotten), (MOST_RUNS, 2));
    }

    #[test]
    fn a_tenant_s_runs_take_no_more_than_their_share_of_the_bucket() {
        let mut runs = full(SourceTrust::UntrustedExternal);
        let flood = |runs: &mut Runs, prefix: &str, second: i64| {
            let taken = (0..MOST_GONE + 10).filter(|n| {
                let (key, label) = label(&format!("{prefix}{n}"), SourceTrust::UntrustedExternal, second);
                take(runs, key, label)
            });
            taken.count()
        };
        assert_eq!(flood(&mut runs, "flood", 30_000), MOST_GONE / 2);
        assert_eq!(flood(&mut runs, "again", 30_001), 0);
        // The tenant's other agents are told of.
        for (n, agent) in ["agent-2", "agent-3", "agent-2"].into_iter().enumerate() {
            let (key, of_another) = label(&format!("other-{n}"), SourceTrust::UntrustedExternal, 30_002);
            assert!(take_of(agent, &mut runs, key, of_another), "{agent}");
        }
        let (key, stricter) = label("stricter", SourceTrust::MaliciousSuspected, 30_002);
        assert!(take(&mut runs, key, stricter));
        let (key, of_other) = label_of("other", "0", SourceTrust::Unknown, 30_002);
        assert!(take(&mut runs, key, of_other), "nobody else's");
        // A day later the bucket has let go of them.
        assert_eq!(flood(&mut runs, "later", 30_003 + MAX_RUN_IDLE_S), MOST_RUNS + MOST_GONE / 2);
    }

    #[test]
    fn an_edge_that_makes_up_times_gets_no_more_of_the_bucket_for_it() {
        let mut runs = full(SourceTrust::UntrustedExternal);
        let now = Timestamp::default().plus_seconds(30_000 * MAX_RUN_IDLE_S);
        let days_apart = (0..MOST_GONE + 2 * MOST_RUNS).filter(|n| {
            let day = i64::try_from(n / 100).unwrap() + 2;
            let (key, label) = label(&format!("made-up-{n}"), SourceTrust::UntrustedExternal, day * MAX_RUN_IDLE_S);
            runs.take(key, label, "agent-1", now)
        });
        assert_eq!(days_apart.count(), MOST_RUNS + MOST_GONE / 2, "those that were there had left the bucket");
        assert!(runs.gone.values().all(|gone| gone.len() == MOST_GONE / 2));
        let (key, of_other) = label_of("other", "0", SourceTrust::Unknown, 0);
        assert!(runs.take(key, of_other, "agent-1", now));
    }

    #[test]
    fn a_tenant_with_many_runs_holds_up_nobody_else_s() {
        let mut runs = Runs::default();
        for (tenant, count) in [("many", 1000), ("few", 2), ("z", 1)] {
            for n in 0..count {
                let (key, label) = label_of(tenant, &n.to_string(), SourceTrust::UntrustedExternal, 0);
                assert!(take(&mut runs, key, label));
            }
        }
        let order: Vec<String> = std::iter::from_fn(|| runs.next()).map(|(_, label)| label.tenant_id.to_string()).collect();
        assert_eq!(order[..6], ["few", "many", "z", "few", "many", "many"]);
        assert_eq!((order.len(), runs.to_tell.len()), (1003, 0));
    }

    #[test]
    fn a_label_that_is_refused_goes_behind_the_others() {
        let mut runs = Runs::default();
        for run in ["a", "b", "c"] {
            let (key, label) = label(run, SourceTrust::Unknown, 0);
            take(&mut runs, key, label);
        }
        let order = |runs: &mut Runs| runs.next().map(|(_, label)| label.run);
        assert_eq!(order(&mut runs).as_deref(), Some("a"));
        runs.again(label("a", SourceTrust::Unknown, 0).0);
        runs.again(label("a", SourceTrust::Unknown, 0).0);
        let rest = [order(&mut runs), order(&mut runs), order(&mut runs), order(&mut runs)];
        assert_eq!(rest.map(|run| run.unwrap_or_default()), ["b", "c", "a", ""]);
    }
}
