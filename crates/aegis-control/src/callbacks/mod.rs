//! Callbacks: what became of an approval is told to the URL that its request named. Queued in the transaction of the change, delivered at
//! least once, in no order, until a day is over; whoever is told must ask `GET /v1/approvals/{id}`.
//! Promises that only a URL on the tenant's allow-list is called, at the time of the call, and that no tenant's receivers take the turns of
//! another's. Nothing waits for a delivery.

mod message;
pub(crate) mod send;
pub(crate) mod target;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use aegis_model::{EventId, TenantId, Timestamp};
use aegis_store::{Callback, CallbackState, StoreError};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::control::Control;
use message::Message;
use send::{Failure, Job};
use target::Target;

/// How many deliveries are under way at once, of all tenants and of one.
pub(crate) const SLOTS: usize = 64;
const TENANT_SLOTS: usize = 4;
/// How long a delivery that failed, or could not be noted, keeps its slot, so that what fails at once is not tried without end.
const REST: Duration = Duration::from_secs(1);
/// The first pause of a callback, seconds; each is twice the one before, up to the longest.
const FIRST_PAUSE_S: i64 = 1;
const LONGEST_PAUSE_S: i64 = 900;
/// No attempt is made later than this after the change, seconds: a day. More than so many there are none in a day; they end it where the change was
/// dated by a clock that was ahead.
const LONGEST_S: i64 = 24 * 3600;
const MOST_ATTEMPTS: i64 = 120;
/// How long a callback waits for its receipt, and how often it looks.
const SEALED_WITHIN: Duration = Duration::from_secs(1);
const SEALED_STEP: Duration = Duration::from_millis(20);

/// Which callbacks are under way.
type Taken = Arc<Mutex<HashMap<TenantId, HashSet<EventId>>>>;

/// One callback's place among those under way; free once it is dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    taken: Taken,
    tenant: TenantId,
    callback_id: EventId,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.taken.lock();
        if let Some(own) = taken.get_mut(&self.tenant) {
            own.remove(&self.callback_id);
            if own.is_empty() {
                taken.remove(&self.tenant);
            }
        }
    }
}

/// What is under way, and whose turn is next.
#[derive(Default)]
struct Turns {
    taken: Taken,
    /// The tenant that was served last.
    last: Option<TenantId>,
}

impl Turns {
    /// How many more deliveries may begin.
    fn free(&self) -> usize {
        SLOTS.saturating_sub(self.taken.lock().values().map(HashSet::len).sum())
    }

    /// How many more of this tenant may.
    fn free_of(&self, tenant: &TenantId) -> usize {
        TENANT_SLOTS.saturating_sub(self.of(tenant).len()).min(self.free())
    }

    /// Those of this tenant that are under way.
    fn of(&self, tenant: &TenantId) -> HashSet<EventId> {
        self.taken.lock().get(tenant).cloned().unwrap_or_default()
    }

    /// Takes a slot for a callback that has none.
    fn take(&self, callback: &Callback) -> Option<Slot> {
        let (tenant, callback_id) = (callback.tenant_id.clone(), callback.callback_id);
        let is_new = self.taken.lock().entry(tenant.clone()).or_default().insert(callback_id);
        is_new.then(|| Slot { taken: Arc::clone(&self.taken), tenant, callback_id })
    }

    /// Tenants in the order of their turns: those behind the one served last come first.
    fn in_turn(&self, mut tenants: Vec<TenantId>) -> Vec<TenantId> {
        if let Some(last) = &self.last {
            let behind = tenants.partition_point(|tenant| tenant <= last);
            tenants.rotate_left(behind);
        }
        tenants
    }
}

/// Delivers what is due until stopped: at once when a change rings, otherwise every `callback_interval`.
pub(crate) async fn run(control: Arc<Control>, jobs: mpsc::Sender<Job>, mut stop: watch::Receiver<bool>) {
    if control.config.callback_loopback {
        tracing::warn!("callbacks may go to this machine's own addresses, without TLS: control.callback_loopback is set");
    }
    let (mut turns, mut under_way) = (Turns::default(), JoinSet::new());
    let mut pulse = tokio::time::interval(control.config.callback_interval);
    pulse.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        if let Err(error) = begin_due(&control, &jobs, &mut turns, &mut under_way).await {
            tracing::warn!(%error, "callbacks that are due could not be read");
        }
        tokio::select! {
            () = control.callback_queued.notified() => {}
            Some(ended) = under_way.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "a delivery ended badly");
                }
            }
            _ = pulse.tick() => control.count_waiting().await,
            _ = stop.changed() => break,
        }
    }
    // What is under way is due still.
    under_way.shutdown().await;
}

async fn begin_due(
    control: &Arc<Control>,
    jobs: &mpsc::Sender<Job>,
    turns: &mut Turns,
    under_way: &mut JoinSet<()>,
) -> Result<(), StoreError> {
    if turns.free() == 0 {
        return Ok(());
    }
    let now = control.clock.now();
    for tenant in turns.in_turn(control.store.due_callback_tenants(now).await?) {
        let free = turns.free_of(&tenant);
        if free == 0 {
            continue;
        }
        // Those under way are due too, and fewer than a tenant's slots; one that ends while this is read may be read as due still.
        let own = turns.of(&tenant);
        let due = control.store.due_callbacks(&tenant, now, 2 * TENANT_SLOTS as u32).await?;
        let others = due.into_iter().filter(|one| !own.contains(&one.callback_id));
        for (callback, slot) in others.filter_map(|one| turns.take(&one).map(|slot| (one, slot))).take(free) {
            under_way.spawn(deliver(Arc::clone(control), jobs.clone(), callback, Arc::new(slot)));
        }
        turns.last = Some(tenant);
    }
    Ok(())
}

/// Makes one attempt and keeps what came of it.
async fn deliver(control: Arc<Control>, jobs: mpsc::Sender<Job>, callback: Callback, slot: Arc<Slot>) {
    let sent = control.attempt(&jobs, &callback, &slot).await;
    let attempts = callback.attempts.saturating_add(1);
    let next = control.clock.now().plus_seconds(pause_s(attempts)).plus_micros(jitter_us(&callback, attempts));
    let state = match sent {
        Ok(()) => CallbackState::Delivered,
        Err(failure) if failure.is_final() || is_last(&callback, attempts, next) => CallbackState::GivenUp,
        Err(_) => CallbackState::Waiting,
    };
    let last_error = sent.err().map(|failure| failure.to_string());
    let kept = control.store.note_callback(&callback.tenant_id, callback.callback_id, state, last_error.as_deref(), next).await;
    let is_done = matches!((&kept, state), (Ok(_), CallbackState::Delivered));
    let (tenant, approval_id) = (&callback.tenant_id, callback.approval_id.as_str());
    match (kept, state) {
        // It is due still, and made again.
        (Err(error), _) => tracing::warn!(%error, %tenant, approval_id, "what came of a callback could not be kept"),
        (Ok(false), _) => {}
        (Ok(true), CallbackState::Delivered) => control.metrics.count_callback("delivered"),
        (Ok(true), CallbackState::Waiting) => {
            control.metrics.count_callback("failed");
            if attempts == 1 {
                let (callback_id, last_error) = (callback.callback_id, last_error.as_deref().unwrap_or_default());
                tracing::warn!(%tenant, approval_id, %callback_id, last_error, "a callback was not delivered; it is tried for a day");
            }
        }
        (Ok(true), CallbackState::GivenUp) => {
            control.metrics.count_callback("given_up");
            let (callback_id, last_error) = (callback.callback_id, last_error.as_deref().unwrap_or_default());
            tracing::error!(%tenant, approval_id, %callback_id, attempts, last_error, "a callback is given up");
        }
    }
    if !is_done {
        tokio::time::sleep(REST).await;
    }
    drop(slot);
}

impl Control {
    /// Looks once more whether the callback may go out, signs it and has it sent.
    async fn attempt(&self, jobs: &mpsc::Sender<Job>, callback: &Callback, slot: &Arc<Slot>) -> Result<(), Failure> {
        let tenant = &callback.tenant_id;
        let unavailable = |error: StoreError| {
            tracing::warn!(%error, "a callback could not be prepared");
            Failure::Unavailable
        };
        let settings = self.store.settings(tenant).await.map_err(unavailable)?;
        if !settings.callback_allow_list.contains(&callback.url) {
            return Err(Failure::NotAllowed);
        }
        let target = Target::read(&callback.url, self.config.callback_loopback).map_err(|_| Failure::UrlRefused)?;
        let secrets = self.store.callback_secrets(tenant).await.map_err(unavailable)?;
        if secrets.is_empty() {
            return Err(Failure::SecretMissing);
        }
        let receipt_hash = self.receipt_hash(callback).await;
        let message = Message::new(callback, receipt_hash.as_deref(), &secrets, self.clock.now());
        let (outcome, sent) = oneshot::channel();
        let job = Job { target, message, slot: Arc::clone(slot), outcome };
        jobs.send(job).await.map_err(|_| Failure::Unavailable)?;
        sent.await.unwrap_or(Err(Failure::Unavailable))
    }

    /// The hash of the change's receipt, for which it waits a moment: the change is in the store before it is sealed. None where it is not sealed
    /// then, or cannot be read.
    async fn receipt_hash(&self, callback: &Callback) -> Option<String> {
        let event_id = callback.event_id?;
        let sealed = async {
            loop {
                match self.ledger.receipt(&callback.tenant_id, event_id).await {
                    Ok(None) => tokio::time::sleep(SEALED_STEP).await,
                    found => return found.ok().flatten(),
                }
            }
        };
        let sealed = tokio::time::timeout(SEALED_WITHIN, sealed).await.ok().flatten()?;
        Some(sealed.receipt_hash)
    }

    async fn count_waiting(&self) {
        match self.store.callbacks_waiting().await {
            Ok(waiting) => self.metrics.callbacks_waiting.inner().store(waiting, Ordering::Relaxed),
            Err(error) => tracing::warn!(%error, "callbacks that wait could not be counted"),
        }
    }
}

/// What an approval's view says of its last callback.
pub(crate) fn view(callback: &Callback) -> Value {
    json!({
        "callback_id": callback.callback_id,
        "version": callback.version,
        "approval_status": callback.status,
        "status": callback.state.as_str(),
        "attempts": callback.attempts,
        "last_error": callback.last_error,
    })
}

/// Seconds until the next attempt, after so many.
fn pause_s(attempts: i64) -> i64 {
    let doublings = u32::try_from(attempts.clamp(1, 32) - 1).unwrap_or_default();
    FIRST_PAUSE_S.saturating_mul(1_i64 << doublings).min(LONGEST_PAUSE_S)
}

/// Up to a quarter of the pause more, by the callback's id, so that a receiver that comes back is not met by all at once.
fn jitter_us(callback: &Callback, attempts: i64) -> i64 {
    const QUARTER_US: i64 = 250_000;
    let [.., random] = *callback.callback_id.as_bytes();
    pause_s(attempts) * QUARTER_US * i64::from(random) / i64::from(u8::MAX)
}

/// Whether there is none at `next`, after so many.
fn is_last(callback: &Callback, attempts: i64, next: Timestamp) -> bool {
    next > callback.changed_at.plus_seconds(LONGEST_S) || attempts >= MOST_ATTEMPTS
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use aegis_model::ApprovalStatus;
    use uuid::Uuid;

    fn callback(tenant: &str, id: u128) -> Callback {
        Callback {
            tenant_id: TenantId::new(tenant).unwrap(),
            callback_id: Uuid::from_u128(id),
            approval_id: "approval-1".into(),
            version: 1,
            url: "https://hooks.example/".into(),
            status: ApprovalStatus::Expired,
            action_hash: "ab".repeat(32),
            event_id: None,
            changed_at: Timestamp::default(),
            state: CallbackState::Waiting,
            attempts: 0,
            last_error: None,
            due_at: Timestamp::default(),
        }
    }

    #[test]
    fn pauses_double_up_to_the_longest_and_end_within_a_day() {
        assert_eq!([1, 2, 3, 10, 11, 400].map(pause_s), [1, 2, 4, 512, 900, 900]);
        assert_eq!(pause_s(i64::MAX), LONGEST_PAUSE_S);
        for id in [0, 0x80, 0xff] {
            assert!((0..=250_000).contains(&jitter_us(&callback("a", id), 1)));
            assert!((0..=225_000_000).contains(&jitter_us(&callback("a", id), 400)));
        }
    }

    #[test]
    fn nobody_tries_for_longer_than_a_day_whenever_the_change_is_said_to_have_been() {
        let in_a_day = (1..1000).scan(0, |second, attempts| {
            *second += pause_s(attempts);
            (*second <= LONGEST_S).then_some(attempts)
        });
        let most = in_a_day.last().unwrap();
        assert!((100..MOST_ATTEMPTS).contains(&most), "{most}");
        let callback = callback("a", 0);
        let day = Timestamp::default().plus_seconds(LONGEST_S);
        assert!(!is_last(&callback, most, day) && is_last(&callback, 1, day.plus_micros(1)));
        let ahead = Callback { changed_at: day.plus_seconds(365 * LONGEST_S), ..callback };
        assert!(!is_last(&ahead, MOST_ATTEMPTS - 1, day) && is_last(&ahead, MOST_ATTEMPTS, day));
    }

    #[test]
    fn a_tenant_takes_its_own_slots_and_nobody_else_s() {
        let turns = Turns::default();
        let slow: Vec<Slot> = (0..4).map(|id| turns.take(&callback("slow", id)).unwrap()).collect();
        let (slow_one, other) = (TenantId::new("slow").unwrap(), TenantId::new("other").unwrap());
        assert_eq!((turns.free_of(&slow_one), turns.free_of(&other)), (0, TENANT_SLOTS));
        assert!(turns.take(&callback("slow", 3)).is_none(), "it is under way");
        let held: Vec<Slot> = (0..60).map(|id| turns.take(&callback(&format!("t{}", id / 4), id)).unwrap()).collect();
        assert_eq!((turns.free(), turns.free_of(&other)), (0, 0));
        drop(slow);
        assert_eq!((turns.free(), turns.free_of(&slow_one)), (4, 4));
        drop(held);
        assert!(turns.taken.lock().is_empty());
    }

    #[test]
    fn turns_go_round() {
        let mut turns = Turns::default();
        let tenants = |names: &[&str]| names.iter().map(|name| TenantId::new(name).unwrap()).collect::<Vec<_>>();
        assert_eq!(turns.in_turn(tenants(&["a", "b", "c"])), tenants(&["a", "b", "c"]));
        for (last, order) in [("a", ["b", "c", "a"]), ("b", ["c", "a", "b"]), ("c", ["a", "b", "c"])] {
            turns.last = Some(TenantId::new(last).unwrap());
            assert_eq!(turns.in_turn(tenants(&["a", "b", "c"])), tenants(&order), "after {last}");
        }
        turns.last = Some(TenantId::new("bb").unwrap());
        assert_eq!(turns.in_turn(tenants(&["a", "b", "c"])), tenants(&["c", "a", "b"]));
    }
}
