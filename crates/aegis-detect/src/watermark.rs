//! Event time per tenant: how far each producer has come, what is late, and what can no longer change.
//! A function of the log alone: it reads `ts` and the stored bus time of events in stream order, never a clock. Promises that what is not proved
//! makes nobody's proved events late.

use std::borrow::Cow;
use std::collections::HashMap;

use aegis_canon::sha256_hex;
use aegis_model::{SecurityEvent, TenantId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::by_name::ByName;
use crate::window::Hasher;

/// A producer not heard of for this much bus activity of its tenant no longer holds the watermark back; and after this much of the whole log
/// nothing is expected of it.
pub(crate) const IDLE_ACTIVITY: i64 = 60_000_000;
/// The most that one pause of the bus counts as activity: a stopped bus makes nobody idle.
pub(crate) const MAX_PAUSE: i64 = 5_000_000;
/// After this much bus activity of a tenant of whom nothing comes that is heard, its time goes on so far behind the bus's: else nothing of it would
/// ever be settled. Nor is who observes the outside ever further behind, whatever time it tells.
const NOTHING_HEARD: i64 = 3_600_000_000;
/// A time of the bus that is so far before one that was is that of a clock that was set back since: longer than any lane is held, whose messages are
/// taken behind later ones.
const SET_BACK: i64 = 5 * 60_000_000;
/// Producers remembered per tenant of either kind; beyond it the one that is furthest behind is left out.
const MAX_PRODUCERS: usize = 1024;

/// Longer names of producers are remembered as their digest: no edge has one, and a checkpoint holds them all.
const LONGEST_NAME: usize = 64;

/// The event time of all tenants, and the bus time of the log that they share.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Watermarks {
    tenants: HashMap<TenantId, TenantTime, Hasher>,
    log: LogTime,
}

/// How far the log has come by the bus's time, whoever wrote: it makes nobody late.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct LogTime {
    newest: Option<Timestamp>,
    /// Bus time so far, its pauses cut short.
    activity: i64,
}

/// The event time of one tenant: no other tenant's events move it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct TenantTime {
    watermark: Option<Timestamp>,
    /// The same without what is told where nothing is proved: never after it.
    #[serde(default)]
    proved_to: Option<Timestamp>,
    /// Edges, by what they proved.
    #[serde(default)]
    proved: Producers,
    /// Who observed the outside. Anybody who reaches the bus can be many of them, so that they share nothing with those above.
    #[serde(default)]
    observed: Producers,
    /// Bus time over what was not proved since the last that was, its pauses cut short, and when the bus stored the newest of it.
    unheard: i64,
    last_unheard: Option<Timestamp>,
}

/// How far each of some producers has come.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Producers {
    /// Bus time over their events so far, its pauses cut short.
    activity: i64,
    last_bus_ts: Option<Timestamp>,
    by_edge: ByName<Producer>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Producer {
    /// Newest event time, at most the bus time of its event: a clock that runs ahead moves nobody's watermark. Of an observation it is not far
    /// before that either: no receipt vouches for its time, and a source of 1970 must not hold everybody there.
    ts: Timestamp,
    heard: i64,
    /// The same as `heard`, of the whole log.
    heard_in_log: i64,
}

impl Watermarks {
    /// Takes the next event of the stream: true if it is in time, false if it is older than watermark minus lateness.
    pub fn admit(&mut self, event: &SecurityEvent, lateness_micros: i64) -> bool {
        let log = self.log.activity;
        let tenant = self.tenants.entry(event.tenant_id.clone()).or_default();
        let in_time = tenant.watermark.is_none_or(|watermark| event.ts >= watermark.plus_micros(-lateness_micros));
        match voice_of(event) {
            Voice::Proved => tenant.hear(event, log),
            Voice::Observed => tenant.observe(event, log),
            Voice::Nobody => tenant.overhear(event),
        }
        in_time
    }

    /// Takes the next event of a log that is in the order of events, and says of each whether it was late when it came: true if it was in time. What
    /// follows is not before it, so that each tells the time.
    pub(crate) fn admit_in_order(&mut self, event: &SecurityEvent) -> bool {
        let tenant = self.tenants.entry(event.tenant_id.clone()).or_default();
        if !event.late {
            tenant.proved.last_bus_ts = tenant.proved.last_bus_ts.max(event.bus_ts);
            tenant.proved_to = tenant.proved_to.max(Some(event.ts));
            tenant.advance(event.ts);
        }
        !event.late
    }

    /// Before this time nothing of the tenant can change any more. None before its first event.
    pub(crate) fn final_before(&self, tenant: &TenantId, lateness_micros: i64) -> Option<Timestamp> {
        Some(self.tenants.get(tenant)?.watermark?.plus_micros(-lateness_micros))
    }

    /// The same by what was proved alone.
    pub(crate) fn proved_before(&self, tenant: &TenantId, lateness_micros: i64) -> Option<Timestamp> {
        Some(self.tenants.get(tenant)?.proved_to?.plus_micros(-lateness_micros))
    }

    /// The log has come to this time of the bus. That of a message behind another is the later one, unless the bus's clock was set back in between:
    /// then it is that clock's time from now on, and nobody waits until it has caught up.
    pub(crate) fn pass(&mut self, bus_ts: Timestamp) {
        self.log.activity += pause_since(self.log.newest, bus_ts);
        self.log.newest = Some(bus_ts);
    }

    /// How far the log has come by the bus's time.
    pub(crate) const fn log_time(&self) -> Option<Timestamp> {
        self.log.newest
    }

    /// Before this time nothing of the tenant is expected any more. What comes all the same is in time as long as it is not before `final_before`,
    /// which is never after this. None before the tenant's first event.
    pub(crate) fn expected_from(&self, tenant: &TenantId, lateness_micros: i64) -> Option<Timestamp> {
        let time = self.tenants.get(tenant)?;
        let speaks = |producer: &&Producer| self.log.activity - producer.heard_in_log <= IDLE_ACTIVITY;
        let slowest = time.proved.by_edge.iter().map(|(_, producer)| producer).filter(speaks).map(|producer| producer.ts).min();
        // Where all are silent, it is the log itself that tells the time.
        let told = slowest.or(self.log.newest);
        Some(time.watermark.max(told)?.plus_micros(-lateness_micros))
    }

    /// All of whom something came.
    pub(crate) fn tenants(&self) -> impl Iterator<Item = &TenantId> {
        self.tenants.keys()
    }

    /// When the bus stored the tenant's newest event.
    pub(crate) fn bus_time(&self, tenant: &TenantId) -> Option<Timestamp> {
        let time = self.tenants.get(tenant)?;
        time.proved.last_bus_ts.max(time.observed.last_bus_ts).max(time.last_unheard)
    }
}

/// Whose time an event tells.
enum Voice {
    Proved,
    Observed,
    /// It did not prove itself, or is what is said about such a one: anybody who reaches the bus can write it, under any edge's name and with
    /// any time.
    Nobody,
}

fn voice_of(event: &SecurityEvent) -> Voice {
    match event.lane {
        Some(_) if event.verified => Voice::Proved,
        None if event.kind.is_external() => Voice::Observed,
        _ => Voice::Nobody,
    }
}

/// What passed on the bus since `last`, at most so much as a pause counts.
fn pause_since(last: Option<Timestamp>, bus_ts: Timestamp) -> i64 {
    last.map_or(0, |last| bus_ts.as_micros().saturating_sub(last.as_micros()).clamp(0, MAX_PAUSE))
}

/// The newest time of the bus, where one more is `bus_ts`.
fn newest_of(last: Option<Timestamp>, bus_ts: Timestamp) -> Option<Timestamp> {
    let is_set_back = last.is_some_and(|last| last.as_micros().saturating_sub(bus_ts.as_micros()) > SET_BACK);
    if is_set_back { Some(bus_ts) } else { last.max(Some(bus_ts)) }
}

impl TenantTime {
    /// Takes note that something came which tells nobody's time.
    fn overhear(&mut self, event: &SecurityEvent) {
        if let Some(bus_ts) = event.bus_ts
            && self.is_nothing_proved_at(bus_ts)
        {
            self.advance(bus_ts.plus_micros(-NOTHING_HEARD));
        }
    }

    /// Takes note of an observation, which tells the time where nothing else does.
    fn observe(&mut self, event: &SecurityEvent, log_activity: i64) {
        let ts = event.bus_ts.map_or(event.ts, |bus_ts| event.ts.min(bus_ts).max(bus_ts.plus_micros(-NOTHING_HEARD)));
        let slowest = self.observed.hear(event, ts, log_activity);
        if let Some(bus_ts) = event.bus_ts
            && self.is_nothing_proved_at(bus_ts)
            && let Some(slowest) = slowest
        {
            self.advance(slowest);
        }
    }

    fn hear(&mut self, event: &SecurityEvent, log_activity: i64) {
        (self.unheard, self.last_unheard) = (0, None);
        let ts = event.bus_ts.map_or(event.ts, |bus_ts| event.ts.min(bus_ts));
        if let Some(slowest) = self.proved.hear(event, ts, log_activity) {
            self.proved_to = self.proved_to.max(Some(slowest));
            self.advance(slowest);
        }
    }

    /// Takes note that the bus stored something then that is not proved: true if nothing was for so long that time has to go on without.
    fn is_nothing_proved_at(&mut self, bus_ts: Timestamp) -> bool {
        self.unheard += pause_since(self.last_unheard, bus_ts);
        self.last_unheard = newest_of(self.last_unheard, bus_ts);
        self.unheard > NOTHING_HEARD
    }

    fn advance(&mut self, to: Timestamp) {
        self.watermark = self.watermark.max(Some(to));
    }
}

impl Producers {
    /// Takes note of an event of one of them, which says that it has come to `ts`, and answers how far the slowest has come.
    fn hear(&mut self, event: &SecurityEvent, ts: Timestamp, heard_in_log: i64) -> Option<Timestamp> {
        if let Some(bus_ts) = event.bus_ts {
            self.activity += pause_since(self.last_bus_ts, bus_ts);
            self.last_bus_ts = newest_of(self.last_bus_ts, bus_ts);
        }
        let activity = self.activity;
        let name: Cow<'_, str> = match event.edge_id.len() {
            ..=LONGEST_NAME => Cow::Borrowed(event.edge_id.as_str()),
            _ => Cow::Owned(sha256_hex(event.edge_id.as_bytes())),
        };
        let known = self.by_edge.get_or_insert_with(&name, || Producer { ts, heard: activity, heard_in_log });
        *known = Producer { ts: known.ts.max(ts), heard: activity, heard_in_log };
        self.by_edge.retain(|_, p| activity - p.heard <= IDLE_ACTIVITY);
        if self.by_edge.len() > MAX_PRODUCERS
            && let Some(furthest_behind) = self.by_edge.iter().min_by_key(|(id, p)| (p.ts, *id)).map(|(id, _)| id.to_owned())
        {
            self.by_edge.retain(|id, _| *id != *furthest_behind);
        }
        self.by_edge.iter().map(|(_, p)| p.ts).min()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use aegis_model::EventKind;

    use super::*;
    use crate::verify::{ChainBreak, chain_broken_event};

    fn event(edge: &str, ts: i64, bus_ts: i64) -> SecurityEvent {
        let tenant = TenantId::new("t").unwrap();
        let mut event =
            SecurityEvent::new(tenant, edge, "edge", EventKind::AuthorizeDecision, Timestamp::from_micros(ts * 1_000_000));
        event.bus_ts = Some(Timestamp::from_micros(bus_ts * 1_000_000));
        event.lane = Some(format!("t.{edge}.1"));
        event.verified = true;
        event
    }

    fn forged(edge: &str, ts: i64, bus_ts: i64) -> SecurityEvent {
        SecurityEvent { verified: false, ..event(edge, ts, bus_ts) }
    }

    fn observed(edge: &str, ts: i64, bus_ts: i64) -> SecurityEvent {
        SecurityEvent { lane: None, kind: EventKind::ExternalGithubWebhook, ..forged(edge, ts, bus_ts) }
    }

    /// What is said about a forged event.
    fn said(of: &SecurityEvent) -> SecurityEvent {
        chain_broken_event(of, &ChainBreak { code: "digest_mismatch".into(), message: String::new() })
    }

    #[test]
    fn what_is_not_proved_makes_nothing_late_that_is() {
        let mut marks = Watermarks::default();
        assert!(marks.admit(&event("edge-1", 390, 990), LATENESS), "an edge ships its backlog");
        assert!(marks.admit(&event("control", 1000, 1000), LATENESS));
        assert!(marks.admit(&event("edge-1", 400, 1000), LATENESS));
        let broken = forged("edge-1", 1000, 1000);
        let bare = SecurityEvent { lane: None, ..broken.clone() };
        for unproved in [said(&broken), broken, said(&bare), bare, observed("edge-1", 1000, 1000)] {
            marks.admit(&unproved, LATENESS);
            assert!(marks.admit(&event("edge-1", 401, 1001), LATENESS), "late behind {unproved:?}");
        }
        assert!(!marks.admit(&forged("edge-1", 300, 1001), LATENESS), "what is not proved is late like anything else");
        assert!(!marks.admit(&observed("github", 300, 1001), LATENESS));
    }

    #[test]
    fn observations_under_many_names_drive_no_edge_out() {
        let mut marks = Watermarks::default();
        assert!(marks.admit(&event("edge-1", 400, 1000), LATENESS), "an edge ships its backlog");
        assert!(marks.admit(&event("control", 1000, 1000), LATENESS));
        for n in 0..=MAX_PRODUCERS {
            assert!(marks.admit(&observed(&format!("made up {n}"), 1000, 1000), LATENESS));
        }
        assert!(marks.admit(&event("edge-1", 401, 1001), LATENESS));
        assert_eq!(marks.tenants.values().map(|time| time.observed.by_edge.len()).collect::<Vec<_>>(), [MAX_PRODUCERS]);
    }

    #[test]
    fn long_names_weigh_no_more_in_a_checkpoint_than_short_ones() {
        let mut marks = Watermarks::default();
        let long = "x".repeat(10_000);
        for n in 0..100 {
            assert!(marks.admit(&observed(&format!("{long}{n}"), 1000, 1000), LATENESS));
        }
        assert_eq!(marks.tenants.values().map(|time| time.observed.by_edge.len()).collect::<Vec<_>>(), [100], "each is one");
        assert!(serde_json::to_string(&marks).unwrap().len() < 100 * 200);
    }

    #[test]
    fn observations_make_no_edge_idle() {
        let mut marks = Watermarks::default();
        assert!(marks.admit(&event("edge-1", 100, 100), LATENESS));
        for second in 101..400 {
            assert!(marks.admit(&observed("github", second, second), LATENESS));
        }
        assert!(marks.admit(&event("control", 400, 400), LATENESS));
        assert!(marks.admit(&event("edge-1", 101, 400), LATENESS));
    }

    #[test]
    fn what_has_no_lane_and_is_no_observation_is_not_heard() {
        let mut marks = Watermarks::default();
        for second in 100..200 {
            marks.admit(&SecurityEvent { lane: None, ..forged("edge-1", second, second) }, LATENESS);
        }
        assert_eq!(marks.final_before(&TenantId::new("t").unwrap(), LATENESS), None);
    }

    #[test]
    fn a_tenant_of_observations_alone_has_its_time_from_them_after_an_hour() {
        let mut marks = Watermarks::default();
        let tenant = TenantId::new("t").unwrap();
        for second in 0..=3600 {
            assert!(marks.admit(&observed("github", second, second), LATENESS));
        }
        assert_eq!(marks.final_before(&tenant, LATENESS), None);
        for second in 3601..3900 {
            assert!(marks.admit(&observed("github", second, second), LATENESS));
        }
        assert_eq!(marks.final_before(&tenant, LATENESS), Some(Timestamp::from_micros(3_889_000_000)));
        assert!(!marks.admit(&observed("github", 3800, 3900), LATENESS));
    }

    #[test]
    fn a_source_of_1970_holds_nobody_there() {
        let mut marks = Watermarks::default();
        let tenant = TenantId::new("t").unwrap();
        for second in 10_000..=20_000 {
            assert!(marks.admit(&observed("github", second, second), LATENESS));
            if second % 30 == 0 {
                marks.admit(&observed("past", 0, second), LATENESS);
            }
        }
        // It said so last at 19,980, and counts as an hour behind that.
        assert_eq!(marks.final_before(&tenant, 0), Some(Timestamp::from_micros(16_380_000_000)));
        assert!(!marks.admit(&observed("past", 0, 20_001), LATENESS), "what it says is late");
        assert!(marks.admit(&observed("delayed", 17_000, 20_001), LATENESS), "what is behind by less is not");
        assert_eq!(marks.final_before(&tenant, 0), Some(Timestamp::from_micros(16_401_000_000)));
    }

    #[test]
    fn where_nothing_is_ever_proved_time_goes_on_an_hour_behind_the_bus() {
        let mut marks = Watermarks::default();
        let tenant = TenantId::new("t").unwrap();
        for second in 0..=3600 {
            marks.admit(&said(&forged("edge-1", 0, second)), LATENESS);
        }
        assert_eq!(marks.final_before(&tenant, 0), None);
        for second in 3601..=7300 {
            assert!(marks.admit(&said(&forged("edge-1", 0, second)), LATENESS), "what the bus says of it is in time");
        }
        assert_eq!(marks.final_before(&tenant, 0), Some(Timestamp::from_micros(3_700_000_000)));
        // Something proved is heard again, and the next hour begins.
        assert!(marks.admit(&event("edge-1", 3_695, 7300), LATENESS));
        for second in 7301..=10_900 {
            marks.admit(&said(&forged("edge-1", 0, second)), LATENESS);
        }
        assert_eq!(marks.final_before(&tenant, 0), Some(Timestamp::from_micros(3_700_000_000)));
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
    fn where_all_are_silent_the_log_tells_what_is_expected_and_makes_nothing_late() {
        let (mut marks, tenant) = (Watermarks::default(), TenantId::new("t").unwrap());
        let at = |second: i64| Timestamp::from_micros(second * 1_000_000);
        let pass =
            |marks: &mut Watermarks, seconds: std::ops::RangeInclusive<i64>| seconds.for_each(|second| marks.pass(at(second)));
        marks.pass(at(100));
        assert!(marks.admit(&event("edge", 100, 100), LATENESS));
        pass(&mut marks, 101..=160);
        assert_eq!(marks.expected_from(&tenant, LATENESS), Some(at(90)), "it may be about to speak");
        pass(&mut marks, 161..=170);
        assert_eq!(marks.expected_from(&tenant, LATENESS), Some(at(160)));
        assert_eq!(marks.final_before(&tenant, LATENESS), Some(at(90)));
        assert!(marks.admit(&event("edge", 101, 170), LATENESS), "a backlog is in time");
        assert_eq!(marks.expected_from(&tenant, LATENESS), Some(at(91)), "and the rest of it is expected");
        // A bus that stood still for a day tells of nobody's silence.
        marks.pass(at(90_000));
        assert_eq!(marks.expected_from(&tenant, LATENESS), Some(at(91)));
    }

    #[test]
    fn a_clock_of_the_bus_that_was_ahead_and_is_set_back_holds_nothing_up() {
        let (mut marks, tenant) = (Watermarks::default(), TenantId::new("t").unwrap());
        let at = |second: i64| Timestamp::from_micros(second * 1_000_000);
        marks.pass(at(7300));
        assert!(marks.admit(&event("dead", 100, 7300), LATENESS));
        assert!(marks.admit(&event("edge", 100, 7300), LATENESS));
        // Two hours back: what is silent from now on is so as before.
        for second in 101..=170 {
            marks.pass(at(second));
            assert!(marks.admit(&event("edge", second, second), LATENESS));
        }
        assert_eq!(marks.log_time(), Some(at(170)));
        assert_eq!(marks.expected_from(&tenant, 0), Some(at(170)), "of the dead one nothing is expected any more");
        assert_eq!(marks.final_before(&tenant, 0), Some(at(170)));
        assert_eq!(marks.bus_time(&tenant), Some(at(170)));
        // A message that was held a while is no clock that was set back.
        let activity = marks.tenants[&tenant].proved.activity;
        for _ in 0..20 {
            assert!(marks.admit(&event("edge", 160, 155), LATENESS));
            assert!(marks.admit(&event("edge", 170, 170), LATENESS));
        }
        assert_eq!(marks.tenants[&tenant].proved.activity, activity, "nobody becomes idle by it");
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
