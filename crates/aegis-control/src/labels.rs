//! What edges are told of each other's runs: the strictest label of a run, signed, in the bucket `trust`. Labels only ever tighten what an edge
//! makes of a run, so that an event nobody has verified yet can do no more than that, and only to runs of its own tenant.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aegis_bus::feed::{FeedPage, fill};
use aegis_bus::{Bucket, BusError, subject};
use aegis_keys::{Scope, sign_notice, verify_notice};
use aegis_model::{EventKind, RunLabel, SecurityEvent, SourceTrust, TenantId};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::{Duration, sleep};

use crate::control::Control;

/// Runs of one tenant that are remembered; past it those whose last call is longest ago are forgotten, of that tenant alone.
const MOST_RUNS: usize = 20_000;
/// Longest name of a run that is told of, bytes: any that an edge admits, which counts characters, with what stands before it.
const MAX_RUN: usize = 4 * 256 + 64;
/// A run that goes on is told again after this time, so that edges do not take it for idle, microseconds.
const AGAIN_US: i64 = 60_000_000;
/// Before a label that the bus refused is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// The labels of runs, by their key in the bucket.
#[derive(Debug, Default)]
pub(crate) struct Labels {
    runs: Mutex<Runs>,
    changed: Notify,
    /// What an earlier start has told was read: nothing is missing.
    is_whole: AtomicBool,
}

#[derive(Debug, Default)]
struct Runs {
    known: BTreeMap<String, Run>,
    /// By tenant and time of the last call, to forget the oldest.
    by_age: HashMap<TenantId, BTreeSet<(i64, String)>>,
    /// In the order in which they came; each once.
    to_tell: VecDeque<String>,
}

#[derive(Debug)]
struct Run {
    label: RunLabel,
    waits: bool,
    /// As it was told last: when, and the entry.
    told: Option<(i64, Bytes, u64)>,
}

impl Runs {
    /// Takes what a call was judged by. True if edges are to be told.
    fn take(&mut self, key: String, label: RunLabel) -> bool {
        let at = label.at.as_micros();
        let by_age = self.by_age.entry(label.tenant_id.clone()).or_default();
        if !self.known.contains_key(&key)
            && by_age.len() >= MOST_RUNS
            && let Some((_, oldest)) = by_age.pop_first()
        {
            self.known.remove(&oldest);
        }
        let run = self.known.entry(key.clone()).or_insert_with(|| Run { label: label.clone(), waits: false, told: None });
        let tightened = run.label.source_trust < label.source_trust;
        run.label.source_trust = run.label.source_trust.combine(label.source_trust);
        by_age.remove(&(run.label.at.as_micros(), key.clone()));
        run.label.at = run.label.at.max(label.at);
        by_age.insert((run.label.at.as_micros(), key.clone()));
        let is_due = run.told.as_ref().is_none_or(|(told_at, ..)| at.saturating_sub(*told_at) >= AGAIN_US);
        let tells = (tightened || is_due) && !run.waits;
        if tells {
            run.waits = true;
            self.to_tell.push_back(key);
        }
        tells
    }

    /// The next that is to be told of. One that was forgotten meanwhile is passed over.
    fn next(&mut self) -> Option<(String, RunLabel)> {
        while let Some(key) = self.to_tell.pop_front() {
            if let Some(run) = self.known.get_mut(&key) {
                run.waits = false;
                return Some((key, run.label.clone()));
            }
        }
        None
    }

    fn told(&mut self, key: &str, at: i64, bytes: Bytes, revision: u64) {
        if let Some(run) = self.known.get_mut(key) {
            run.told = Some((at, bytes, revision));
        }
    }

    /// Behind all others, so that one which is refused holds up none.
    fn again(&mut self, key: String) {
        if let Some(run) = self.known.get_mut(&key).filter(|run| !run.waits) {
            run.waits = true;
            self.to_tell.push_back(key);
        }
    }
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
    pub(crate) fn label_run(&self, event: &SecurityEvent) {
        let Some(source_trust) = event.source_trust else { return };
        if event.kind != EventKind::AuthorizeDecision
            || source_trust <= SourceTrust::TrustedInternalUnsigned
            || !self.has_far_edges()
        {
            return;
        }
        let run = match (&event.run_id, &event.agent_id) {
            (Some(run_id), _) => format!("run:{run_id}"),
            (None, Some(agent_id)) => format!("agent:{agent_id}"),
            (None, None) => return,
        };
        if run.len() > MAX_RUN {
            return;
        }
        // Nobody makes a run last by a time to come.
        let at = event.ts.min(self.clock.now());
        let key = subject::kv_trust(&event.tenant_id, &run);
        let label = RunLabel { tenant_id: event.tenant_id.clone(), run, source_trust, at };
        if self.labels.runs.lock().take(key, label) {
            self.labels.changed.notify_one();
        }
    }

    /// Reads what an earlier start has told.
    async fn read_labels(&self) -> Result<(), BusError> {
        for (key, bytes, revision) in self.bus.kv_all(Bucket::Trust, "*.*").await? {
            let Ok((label, signer)) = verify_notice::<RunLabel>(&self.ring, &bytes) else { continue };
            if signer.scope != Scope::Any || key != subject::kv_trust(&label.tenant_id, &label.run) {
                continue;
            }
            let told_at = label.at.as_micros();
            let mut runs = self.labels.runs.lock();
            runs.told(&key, told_at, bytes.clone(), revision);
            runs.take(key.clone(), label);
            runs.told(&key, told_at, bytes, revision);
        }
        self.labels.is_whole.store(true, Ordering::SeqCst);
        Ok(())
    }

    async fn tell_label(&self, key: &str, label: &RunLabel) -> Result<(), BusError> {
        let signed = sign_notice(&self.key, label).map_err(|error| BusError::Unavailable { reason: error.to_string() })?;
        let bytes = Bytes::from(signed);
        let revision = self.bus.kv_put(Bucket::Trust, key, bytes.clone()).await?;
        self.labels.runs.lock().told(key, label.at.as_micros(), bytes, revision);
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
    use aegis_model::Timestamp;

    fn label(run: &str, trust: SourceTrust, second: i64) -> (String, RunLabel) {
        label_of("acme", run, trust, second)
    }

    fn label_of(tenant: &str, run: &str, trust: SourceTrust, second: i64) -> (String, RunLabel) {
        let tenant_id = TenantId::new(tenant).unwrap();
        let at = Timestamp::default().plus_seconds(second);
        (subject::kv_trust(&tenant_id, run), RunLabel { tenant_id, run: run.into(), source_trust: trust, at })
    }

    /// Takes it, and tells what is to be told.
    fn tells(runs: &mut Runs, (key, label): (String, RunLabel)) -> bool {
        let tells = runs.take(key.clone(), label);
        let next = runs.next();
        assert_eq!(tells, next.is_some());
        if let Some((told, label)) = next {
            assert_eq!(told, key);
            runs.told(&key, label.at.as_micros(), Bytes::new(), 1);
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

    #[test]
    fn a_tenant_s_full_memory_forgets_its_run_that_rests_longest_and_nobody_else_s() {
        let mut runs = Runs::default();
        let (other, of_other) = label_of("other", "0", SourceTrust::Unknown, -1);
        runs.take(other.clone(), of_other);
        for n in 0..MOST_RUNS {
            let (key, label) = label(&format!("{n}"), SourceTrust::Unknown, i64::try_from(n).unwrap());
            runs.take(key, label);
        }
        let (first, second) = (label("0", SourceTrust::Unknown, 1_000_000), label("1", SourceTrust::Unknown, 0).0);
        runs.take(first.0.clone(), first.1);
        let (key, new) = label("new", SourceTrust::Unknown, 1_000_001);
        runs.take(key.clone(), new);
        assert!(runs.known.contains_key(&first.0) && runs.known.contains_key(&key) && runs.known.contains_key(&other));
        assert!(!runs.known.contains_key(&second));
        assert_eq!(runs.known.len(), MOST_RUNS + 1);
    }

    #[test]
    fn a_label_that_is_refused_goes_behind_the_others() {
        let mut runs = Runs::default();
        for run in ["a", "b", "c"] {
            let (key, label) = label(run, SourceTrust::Unknown, 0);
            runs.take(key, label);
        }
        let order = |runs: &mut Runs| runs.next().map(|(_, label)| label.run);
        assert_eq!(order(&mut runs).as_deref(), Some("a"));
        runs.again(label("a", SourceTrust::Unknown, 0).0);
        runs.again(label("a", SourceTrust::Unknown, 0).0);
        let rest = [order(&mut runs), order(&mut runs), order(&mut runs), order(&mut runs)];
        assert_eq!(rest.map(|run| run.unwrap_or_default()), ["b", "c", "a", ""]);
    }
}
