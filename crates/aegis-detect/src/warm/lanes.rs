//! The lanes of what lies before a rule that contains, followed once more: receipt by receipt, from before its window up to where detection has them.
//! Promises that what such a rule is filled with proved itself, is linked by its hashes to the heads that detection followed, and came in its place in the
//! lane; that no receipt of that time is left out; and that where any of it cannot be shown, nothing is.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use aegis_keys::KeyRing;
use aegis_ledger::verify::LaneHeads;
use aegis_model::{EventId, SecurityEvent, TenantId, Timestamp, WireEvent};
use tokio::sync::oneshot;

use crate::verify::{AHEAD_OF_TIME, FOREIGN_KIND, Stage, VerifyStage, is_ahead_of_time};

/// An error: it cannot be told now. Within: the events, as their lanes prove them; or why the lanes do not, which stays so.
pub type Followed = Result<Result<Vec<SecurityEvent>, String>, String>;

/// Who finds the receipts of lanes.
pub trait PastReceipts: Send + Sync + fmt::Debug {
    /// Has lanes followed. Never waits: whoever answers does so when it has done it, on a thread of its own.
    fn follow(&self, lanes: PastLanes) -> oneshot::Receiver<Followed>;
}

/// A tenant's events of a time, as they lie somewhere, and the lanes that are to prove them.
#[derive(Debug)]
pub struct PastLanes {
    tenant: TenantId,
    span: (Timestamp, Timestamp),
    events: Vec<SecurityEvent>,
    heads: LaneHeads,
    /// What comes so much behind a receipt that follows it may have been waited for in vain.
    most_behind: i64,
}

impl PastLanes {
    /// `heads` are those of all lanes of the tenant that have receipts of the time, or behind it.
    pub(super) fn new(
        tenant: TenantId,
        span: (Timestamp, Timestamp),
        events: Vec<SecurityEvent>,
        heads: LaneHeads,
        hold_ms: i64,
    ) -> Self {
        // Far from the end of the wait, which is told by other events' times.
        Self { tenant, span, events, heads, most_behind: hold_ms.saturating_mul(1000) / 4 }
    }

    /// Whose they are.
    #[must_use]
    pub const fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    /// When their time begins.
    #[must_use]
    pub const fn since(&self) -> Timestamp {
        self.span.0
    }

    /// Which lanes are to be followed, each up to which `seq`.
    #[must_use]
    pub fn lanes(&self) -> Vec<(String, i64)> {
        self.heads.all().map(|(lane, seq, _)| (lane.to_owned(), seq)).collect()
    }

    /// Begins to follow them. `ring` has the keys of whose receipts are believed.
    #[must_use]
    pub fn begin(self, ring: KeyRing) -> Following {
        let mut stage = VerifyStage::new(ring, LaneHeads::default());
        // The first that comes of a lane is held against nothing, and all that follow against that.
        stage.begin_within(self.heads.clone());
        let rows = self.events.iter().map(|row| row.event_id).collect();
        Following { asked: self, stage, rows, came: BTreeMap::new(), proved: HashMap::new() }
    }
}

/// Lanes on their way.
#[derive(Debug)]
pub struct Following {
    asked: PastLanes,
    stage: VerifyStage,
    /// Of which events there are rows: no others are held, however many receipts came late.
    rows: HashSet<EventId>,
    /// Of each lane's receipts the time, and when the bus had them, in the order of `seq`.
    came: BTreeMap<String, Vec<(Timestamp, Timestamp)>>,
    /// The events of the time.
    proved: HashMap<EventId, SecurityEvent>,
}

impl Following {
    /// Takes the next receipt of a lane, as it was published: the last one that is older than the time comes first, or the lane's very first, and then each
    /// up to the lane's head. An error says why the lane does not prove itself.
    pub fn take(&mut self, wire: &str, bus_ts: Option<Timestamp>) -> Result<(), String> {
        let read = WireEvent::read(wire.as_bytes()).map_err(|error| error.to_string())?;
        let mut event = read.event().map_err(|error| error.to_string())?;
        let (Some(lane), Some(seq), Some(bus_ts)) = (event.lane.clone(), event.seq, bus_ts) else {
            return Err("a receipt is of no lane, or nobody wrote down when the bus had it".to_owned());
        };
        let (from, to) = self.asked.span;
        if event.tenant_id != self.asked.tenant || self.asked.heads.get(&lane).is_none() {
            return Err(format!("the lane {lane} is none that detection follows"));
        }
        if seq > 1 && event.ts >= from && !self.came.contains_key(&lane) {
            return Err(format!("of the lane {lane} what is before its receipt {seq} is not there"));
        }
        event.bus_ts = Some(bus_ts);
        match self.stage.take(&read, &mut event) {
            Stage::Kept if event.verified => {}
            // Its receipt holds, and it was not theirs to say: so it was live.
            Stage::Broken(broken, _) if [AHEAD_OF_TIME, FOREIGN_KIND].contains(&broken.code.as_str()) => {}
            Stage::Broken(broken, _) => return Err(format!("receipt {seq} of the lane {lane}: {}", broken.message)),
            Stage::Kept | Stage::Repeated => return Err(format!("receipt {seq} of the lane {lane} is none, or comes again")),
        }
        let is_asked_for = from <= event.ts && event.ts < to && !is_ahead_of_time(&event);
        if is_asked_for && !self.rows.contains(&event.event_id) {
            return Err(not_there(&lane, seq));
        }
        self.came.entry(lane).or_default().push((event.ts, bus_ts));
        if is_asked_for {
            self.proved.insert(event.event_id, event);
        }
        Ok(())
    }

    /// The events, as the lanes prove them: what a row says beside its id is not asked. An error says what they do not prove.
    pub fn finish(self) -> Result<Vec<SecurityEvent>, String> {
        self.check_lanes()?;
        let Self { asked: PastLanes { tenant, span: (from, to), events: rows, .. }, mut proved, .. } = self;
        let mut events = Vec::with_capacity(rows.len());
        for row in rows {
            if row.tenant_id != tenant || row.ts < from || row.ts >= to {
                return Err(format!("the event {} is another tenant's, or of another time", row.event_id));
            }
            let is_proved = proved.get(&row.event_id).map(|event| event.verified);
            match (row.verified, is_proved) {
                _ if row.lane.is_none() => events.push(SecurityEvent { verified: false, ..row }),
                (true, Some(true)) | (false, Some(false)) => events.extend(proved.remove(&row.event_id)),
                // What is not proved may have the id of what is.
                (false, _) => events.push(row),
                (true, _) => {
                    return Err(format!("the event {} is said to be proved, and is no receipt of its lane", row.event_id));
                }
            }
        }
        match proved.into_values().next() {
            Some(SecurityEvent { lane: Some(lane), seq: Some(seq), .. }) => Err(not_there(&lane, seq)),
            _ => Ok(events),
        }
    }

    /// Each lane was followed to where detection has it, and each receipt of the time came before those behind it, or was waited for.
    fn check_lanes(&self) -> Result<(), String> {
        for (lane, seq, hash) in self.asked.heads.all() {
            if self.stage.heads().get(lane) != Some((seq, hash)) {
                return Err(format!("the lane {lane} does not lead to the receipt {seq} that detection has"));
            }
        }
        for (lane, came) in &self.came {
            let mut behind: Option<Timestamp> = None;
            for (ts, bus_ts) in came.iter().rev() {
                let waited = behind.map_or(0, |behind| bus_ts.as_micros().saturating_sub(behind.as_micros()));
                if waited > self.asked.most_behind && *ts < self.asked.span.1 {
                    return Err(format!("in the lane {lane} a receipt came behind those that follow it"));
                }
                behind = Some(behind.map_or(*bus_ts, |behind| behind.min(*bus_ts)));
            }
        }
        Ok(())
    }
}

fn not_there(lane: &str, seq: i64) -> String {
    format!("the event of receipt {seq} of the lane {lane} is not there, or came late")
}
