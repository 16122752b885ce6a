//! The first stage of every consumer: each event of a log in order, verified alone and linked to its lane.
//! A pure function of the log and the heads it starts from. What fails is never dropped here; the verdict says so.

use aegis_keys::KeyRing;
use aegis_model::{WireEvent, is_observation};
use serde_json::Value;

use super::heads::{LaneHeads, Link};
use super::proof::CommitCache;
use super::short::verify_parts;
use super::wire::{VerifiedReceipt, verify_wire_cached};
use super::{FailureCode, VerifyFailure};

/// What is known about one event.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// True: proved, and linked to a chain that was followed without a break.
    pub verified: bool,
    /// Why not. None for an observation of the outside, which has no receipt and is never verified.
    pub failure: Option<VerifyFailure>,
    /// True: this (lane, seq) has been seen before; drop it.
    pub repeated: bool,
    /// The receipt, where its own parts agree.
    pub receipt: Option<VerifiedReceipt>,
}

/// Of an observation nothing is to be said.
const NOTHING: Verdict = Verdict { verified: false, failure: None, repeated: false, receipt: None };

/// Proves events one by one: what a consumer needs that does not follow lanes. Remembers the commits whose signature it has checked.
#[derive(Debug)]
pub struct Prover {
    ring: KeyRing,
    cache: CommitCache,
}

impl Prover {
    #[must_use]
    pub fn new(ring: KeyRing) -> Self {
        Self { ring, cache: CommitCache::default() }
    }

    /// The receipt of an event that proves itself: sealed by a key that may speak for its lane and tenant, and covering every part of the event.
    pub fn prove(&mut self, wire: &WireEvent<'_>) -> Option<VerifiedReceipt> {
        self.prove_parts(wire).or_else(|| self.prove_value(&wire.to_value().ok()?).ok())
    }

    /// The short way, from the parts as they stand in the text.
    fn prove_parts(&mut self, wire: &WireEvent<'_>) -> Option<VerifiedReceipt> {
        wire.sealed_parts().and_then(|parts| verify_parts(&parts, Some(&self.ring), &mut self.cache))
    }

    fn prove_value(&mut self, wire: &Value) -> Result<VerifiedReceipt, VerifyFailure> {
        verify_wire_cached(wire, Some(&self.ring), &mut self.cache)
    }
}

/// Verifies a log event by event.
#[derive(Debug)]
pub struct StreamVerifier {
    prover: Prover,
    heads: LaneHeads,
    /// How far lanes were followed once that are not followed yet.
    known: LaneHeads,
}

impl StreamVerifier {
    /// Starts at the beginning of a log.
    #[must_use]
    pub fn new(ring: KeyRing) -> Self {
        Self::resume(ring, LaneHeads::default())
    }

    /// Goes on from a checkpoint.
    #[must_use]
    pub fn resume(ring: KeyRing, heads: LaneHeads) -> Self {
        Self { prover: Prover::new(ring), heads, known: LaneHeads::default() }
    }

    /// The heads, for a checkpoint.
    #[must_use]
    pub fn heads(&self) -> &LaneHeads {
        &self.heads
    }

    /// The heads, to forget idle lanes.
    pub fn heads_mut(&mut self) -> &mut LaneHeads {
        &mut self.heads
    }

    /// The log is read again, and its beginning may be gone: lanes were followed to here once. Of one whose first receipts are not there any more the
    /// first that is there is held against nothing, and all that follow against that.
    pub fn begin_within(&mut self, known: LaneHeads) {
        self.known = known;
    }

    /// Those lanes of which nothing was read yet.
    #[must_use]
    pub fn known(&self) -> &LaneHeads {
        &self.known
    }

    /// The log was read up to where the lanes were followed once: those of which nothing was there go on from their heads.
    pub fn take_up_all(&mut self) {
        self.heads.take_up_all(std::mem::take(&mut self.known));
    }

    /// Replaces the pinned keys.
    pub fn set_ring(&mut self, ring: KeyRing) {
        self.prover = Prover::new(ring);
    }

    /// Verifies the next event. After a missing or broken link the lane goes on from this event, so one break is one failure.
    /// A missing receipt that comes later is not `repeated`, but not verified either: nothing was held against it in its place.
    pub fn check(&mut self, wire: &Value) -> Verdict {
        match self.prove(wire) {
            Ok(receipt) => self.link(receipt),
            Err(verdict) => *verdict,
        }
    }

    /// The same, from the text.
    pub fn check_wire(&mut self, wire: &WireEvent<'_>) -> Verdict {
        if let Some(receipt) = self.prover.prove_parts(wire) {
            return self.link(receipt);
        }
        if wire.is_observation() {
            return NOTHING;
        }
        match wire.to_value() {
            Ok(value) => self.check(&value),
            Err(error) => {
                let failure = VerifyFailure::new(FailureCode::Malformed, error.to_string());
                Verdict { verified: false, failure: Some(failure), repeated: false, receipt: None }
            }
        }
    }

    fn link(&mut self, receipt: VerifiedReceipt) -> Verdict {
        self.heads.take_up(&mut self.known, &receipt);
        let mut repeated = false;
        let failure = match self.heads.link(&receipt) {
            Link::First | Link::Next => {
                self.heads.advance(&receipt);
                None
            }
            Link::Repeated { .. } => {
                repeated = true;
                None
            }
            Link::Late => {
                self.heads.found(&receipt);
                let message = "it came after its lane had gone on without it";
                Some(VerifyFailure::new(FailureCode::LateSeq, message).of(&receipt))
            }
            Link::Missing { from, to } => {
                self.heads.advance_over(&receipt, from, to);
                Some(missing(from, to).of(&receipt))
            }
            Link::Broken(failure) => {
                // A fork, and whatever breaks the lane's own rules, must not become what later receipts are held against.
                if !matches!(failure.code, FailureCode::ForkedSeq | FailureCode::LaneRule) {
                    self.heads.advance(&receipt);
                }
                Some(failure)
            }
        };
        Verdict { verified: failure.is_none(), failure, repeated, receipt: Some(receipt) }
    }

    /// How the next event would link, without following it: for a consumer that holds a lane while missing rows are fetched.
    /// None if it does not verify alone.
    pub fn peek(&mut self, wire: &Value) -> Option<Link> {
        self.prove(wire).ok().map(|receipt| self.heads.link_within(&self.known, &receipt))
    }

    fn prove(&mut self, wire: &Value) -> Result<VerifiedReceipt, Box<Verdict>> {
        if is_observation(wire) {
            return Err(Box::new(NOTHING));
        }
        self.prover
            .prove_value(wire)
            .map_err(|failure| Box::new(Verdict { verified: false, failure: Some(failure), repeated: false, receipt: None }))
    }
}

fn missing(from: i64, to: i64) -> VerifyFailure {
    let message =
        if from == to { format!("seq {from} is missing before it") } else { format!("seq {from} to {to} are missing before it") };
    VerifyFailure::new(FailureCode::MissingSeq, message)
}
