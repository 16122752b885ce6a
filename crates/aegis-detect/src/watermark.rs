//! Event time per tenant: how far each producer has come, what is late, and what can no longer change.
//! A function of the log alone: it reads `ts` and the stored bus time of events in stream order, never a clock.

use std::collections::HashMap;

use aegis_model::{SecurityEvent, TenantId, Timestamp};
use serde::{Deserialize, Serialize};

/// A producer not heard of for this much bus activity of its tenant no longer holds the watermark back.
const IDLE_ACTIVITY: i64 = 60_000_000;
/// The most that one pause of the bus counts as activity: a stopped bus makes nobody idle.
const MAX_PAUSE: i64 = 5_000_000;
/// Producers remembered per tenant; beyond it the one that is furthest behind is left out.
const MAX_PRODUCERS: usize = 1024;

/// The event time of all tenants.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Watermarks(HashMap<TenantId, TenantTime>);

/// The event time of one tenant: no other tenant's events move it.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct TenantTime {
    watermark: Option<Timestamp>,
    /// Bus time over the tenant's events so far, its pauses cut short.
    activity: i64,
    last_bus_ts: Option<Timestamp>,
    producers: HashMap<String, Producer>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Producer {
    /// Newest event time, at most the bus time of its event: a clock that runs ahead moves nobody's watermark.
    ts: Timestamp,
    heard: i64,
}

impl Watermarks {
    /// Takes the next event of the stream: true if it is in time, false if it is older than watermark minus lateness.
    pub(crate) fn admit(&mut self, event: &SecurityEvent, lateness_micros: i64) -> bool {
        let fresh = || TenantTime { watermark: None, activity: 0, last_bus_ts: None, producers: HashMap::new() };
        let tenant = self.0.entry(event.tenant_id.clone()).or_insert_with(fresh);
        let in_time = tenant.watermark.is_none_or(|watermark| event.ts >= watermark.plus_micros(-lateness_micros));
        tenant.hear(event);
        in_time
    }

    /// Before this time nothing of the tenant can change any more. None before its first event.
    pub(crate) fn final_before(&self, tenant: &TenantId, lateness_micros: i64) -> Option<Timestamp> {
        Some(self.0.get(tenant)?.watermark?.plus_micros(-lateness_micros))
    }
}

impl TenantTime {
    fn hear(&mut self, event: &SecurityEvent) {
        if let Some(bus_ts) = event.bus_ts {
            let pause = self.last_bus_ts.map_or(0, |last| bus_ts.as_micros().saturating_sub(last.as_micros()));
            self.activity += pause.clamp(0, MAX_PAUSE);
            self.last_bus_ts = Some(self.last_bus_ts.map_or(bus_ts, |last| last.max(bus_ts)));
        }
        let activity = self.activity;
        let ts = event.bus_ts.map_or(event.ts, |bus_ts| event.ts.min(bus_ts));
        match self.producers.get_mut(&event.edge_id) {
            Some(producer) => *producer = Producer { ts: producer.ts.max(ts), heard: activity },
            None => {
                self.producers.insert(event.edge_id.clone(), Producer { ts, heard: activity });
            }
        }
        self.producers.retain(|_, p| activity - p.heard <= IDLE_ACTIVITY);
        if self.producers.len() > MAX_PRODUCERS
            && let Some(furthest_behind) =
                self.producers.iter().min_by_key(|(id, p)| (p.ts, (*id).clone())).map(|(id, _)| id.clone())
        {
            self.producers.remove(&furthest_behind);
        }
        if let Some(slowest) = self.producers.values().map(|p| p.ts).min() {
            self.watermark = self.watermark.max(Some(slowest));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use aegis_model::EventKind;

    fn event(edge: &str, ts: i64, bus_ts: i64) -> SecurityEvent {
        let tenant = TenantId::new("t").unwrap();
        let mut event =
            SecurityEvent::new(tenant, edge, "edge", EventKind::AuthorizeDecision, Timestamp::from_micros(ts * 1_000_000));
        event.bus_ts = Some(Timestamp::from_micros(bus_ts * 1_000_000));
        event
    }

    const LATENESS: i64 = 10_000_000;

    #[test]
    fn the_slowest_producer_holds_the_watermark_until_it_is_idle() {
        let mut marks = Watermarks::default();
        assert!(marks.admit(&event("slow", 100, 100), LATENESS));
        for second in 101..150 {
            assert!(marks.admit(&event("quick", second, second), LATENESS));
        }
        assert!(marks.admit(&event("slow", 101, 150), LATENESS), "a slow producer is not late");
        for second in 151..300 {
            marks.admit(&event("quick", second, second), LATENESS);
        }
        assert!(!marks.admit(&event("slow", 102, 300), LATENESS), "an idle one is");
    }

    #[test]
    fn a_clock_that_runs_ahead_makes_nobody_late() {
        let mut marks = Watermarks::default();
        assert!(marks.admit(&event("ahead", 1_000_000, 100), LATENESS));
        assert!(marks.admit(&event("right", 100, 100), LATENESS));
    }

    #[test]
    fn a_stopped_bus_makes_nobody_idle() {
        let mut marks = Watermarks::default();
        assert!(marks.admit(&event("edge", 100, 100), LATENESS));
        // The process was down for a day; control speaks first, the edge's backlog follows.
        assert!(marks.admit(&event("control", 90_000, 90_000), LATENESS));
        assert!(marks.admit(&event("edge", 101, 90_000), LATENESS));
    }
}
