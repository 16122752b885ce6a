//! The first stage: every event that claims a lane is proved and linked, and held against who seals its kind, before a rule sees it.
//! What fails is kept as `verified = false`, and says so as an event of its own, `receipt_chain_broken`, derived from it.

use aegis_keys::KeyRing;
use aegis_ledger::verify::{LaneHeads, Link, StreamVerifier};
use aegis_model::{EventKind, SOC, SecurityEvent, Timestamp, Unmarked, WireEvent, external_event_id};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// Name under which the ids of `receipt_chain_broken` events are derived.
const ADAPTER: &str = "receipt-chain";
/// Longest message of a failure that is kept, in characters.
const MAX_MESSAGE: usize = 300;
/// How far the time of an event may be ahead of that at which the bus stored it, microseconds: clocks are minutes apart before they are corrected.
const MOST_AHEAD: i64 = 5 * 60 * 1_000_000;
/// The code of an event whose time is further ahead: its receipt holds, and what it says of the time cannot be.
pub(crate) const AHEAD_OF_TIME: &str = "ahead_of_time";
/// The code of an event of a kind that its lane's producer does not seal: its receipt holds, and it was not theirs to say.
pub(crate) const FOREIGN_KIND: &str = "foreign_kind";

/// Why an event is not verified.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainBreak {
    /// The rule that the receipt breaks, a stable word.
    pub code: String,
    pub message: String,
}

/// What became of an event.
#[derive(Clone, Debug, PartialEq)]
pub enum Stage {
    /// Its place in its lane has been seen: drop it.
    Repeated,
    /// To the rules, with `verified` set.
    Kept,
    /// To the rules, unverified (but for one that is ahead of its time), together with the event that says so.
    Broken(ChainBreak, Box<SecurityEvent>),
}

/// The stage, with the lane heads as its state.
#[derive(Debug)]
pub struct VerifyStage {
    verifier: StreamVerifier,
}

impl VerifyStage {
    /// Goes on from the heads of a checkpoint, or from none.
    #[must_use]
    pub fn new(ring: KeyRing, heads: LaneHeads) -> Self {
        Self { verifier: StreamVerifier::resume(ring, heads) }
    }

    /// The heads, for a checkpoint.
    #[must_use]
    pub fn heads(&self) -> &LaneHeads {
        self.verifier.heads()
    }

    /// How far a lane was followed, here or once; 0 of one that was not.
    pub(crate) fn head_of(&self, lane: &str) -> i64 {
        self.heads().get(lane).or_else(|| self.known().get(lane)).map_or(0, |(seq, _)| seq)
    }

    /// The stream is read again, and its beginning may be gone: lanes were followed to here once.
    pub(crate) fn begin_within(&mut self, known: LaneHeads) {
        self.verifier.begin_within(known);
    }

    /// Those lanes of which nothing was read yet.
    pub(crate) fn known(&self) -> &LaneHeads {
        self.verifier.known()
    }

    /// Lanes of which nothing was read go on from where they were followed to.
    pub(crate) fn take_up_all(&mut self) {
        self.verifier.take_up_all();
    }

    /// Forgets lanes whose last receipt is older than `before`.
    pub fn forget_idle(&mut self, before: Timestamp) {
        self.verifier.heads_mut().forget_idle(before);
    }

    /// True if the event is proved, and receipts are missing between its lane's head and it. Changes nothing.
    pub(crate) fn misses_one_before(&mut self, wire: &WireEvent<'_>, event: Unmarked<'_>) -> bool {
        let (Some(lane), Some(seq)) = (event.lane(), event.seq()) else { return false };
        // Cheap for every event that is in order, which is nearly all.
        let head = self.verifier.heads().get(lane).map_or(0, |(seq, _)| seq);
        seq > head + 1 && wire.to_value().is_ok_and(|value| matches!(self.verifier.peek(&value), Some(Link::Missing { .. })))
    }

    /// Judges the next event of the stream, and sets its `verified`. `wire` is the event as it was read.
    pub fn take(&mut self, wire: &WireEvent<'_>, event: &mut SecurityEvent) -> Stage {
        let whole: &SecurityEvent = event;
        let (verified, stage) = self.judge(wire, whole.unmarked(), || whole);
        event.verified = verified;
        stage
    }

    /// The same of an event that others have too: whether it is verified, which its own field does not say. `whole`: all of it, asked for where it fails.
    pub(crate) fn judge<'e>(
        &mut self,
        wire: &WireEvent<'_>,
        event: Unmarked<'_>,
        whole: impl FnOnce() -> &'e SecurityEvent,
    ) -> (bool, Stage) {
        let verdict = self.verifier.check_wire(wire);
        if verdict.repeated {
            return (verdict.verified, Stage::Repeated);
        }
        let broken = match verdict.failure {
            Some(failure) => {
                let message = failure.message.chars().take(MAX_MESSAGE).collect();
                ChainBreak { code: failure.code.as_str().to_owned(), message }
            }
            None if verdict.verified && is_ahead(event.ts(), event.bus_ts()) => {
                let message = format!("its ts is {}, more than five minutes after the bus had it", event.ts());
                ChainBreak { code: AHEAD_OF_TIME.to_owned(), message }
            }
            None if verdict.verified && !event.is_for_its_lane_to_say() => {
                let message = format!(
                    "an event of kind {} is sealed by {}, and not in this lane",
                    event.kind(),
                    event.kind().sealer().as_str()
                );
                ChainBreak { code: FOREIGN_KIND.to_owned(), message }
            }
            None => return (verdict.verified, Stage::Kept),
        };
        let said = chain_broken_event(whole(), &broken);
        (false, Stage::Broken(broken, Box::new(said)))
    }
}

/// True if the event says that it happened more than five minutes after the bus stored it: whoever seals such receipts could open windows that
/// nothing of the present is in, and a rule that contains does not look at it.
#[must_use]
pub fn is_ahead_of_time(event: &SecurityEvent) -> bool {
    is_ahead(event.ts, event.bus_ts)
}

/// The same, of when the event says that it happened, and when the bus stored it.
#[must_use]
pub fn is_ahead(ts: Timestamp, stored: Option<Timestamp>) -> bool {
    stored.is_some_and(|stored| ts > stored.plus_micros(MOST_AHEAD))
}

/// The event that says that `event` failed. A function of the log: its id is derived, its time is the bus's.
#[must_use]
pub fn chain_broken_event(event: &SecurityEvent, broken: &ChainBreak) -> SecurityEvent {
    // The event's own `ts` may be forged to look late; when the bus stored it is not the sender's to choose.
    let ts = event.bus_ts.unwrap_or(event.ts);
    let mut said = SecurityEvent::new(event.tenant_id.clone(), &event.edge_id, SOC, EventKind::ReceiptChainBroken, ts);
    said.event_id = external_event_id(&event.tenant_id, ADAPTER, &format!("{}/{}", event.event_id, broken.code));
    said.ref_event_id = Some(event.event_id);
    said.lane.clone_from(&event.lane);
    said.seq = event.seq;
    said.agent_id.clone_from(&event.agent_id);
    said.receipt_hash = None;
    said.status = Some(broken.code.clone());
    said.reason = Some(broken.message.clone());
    said.attributes = Some(json!({"kind": event.kind.as_str()}).to_string());
    said.bus_ts = event.bus_ts;
    said
}
