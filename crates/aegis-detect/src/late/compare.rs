//! What a part of a tenant's time comes to with its late events and without them. The rules are run over the same events as a backtest runs them: with
//! what was in time, with the late ones of before, and with those that are caught up now; what differs is to be told, or taken back.
//! Promises that what live told is neither told again nor taken back, and that nobody is contained on what came late.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use aegis_canon::CanonError;
use aegis_model::{Alert, Clock, Retraction, SecurityEvent, TenantId, Timestamp};

use crate::alert::late_alert_id;
use crate::backtest::Backtest;
use crate::engine::EngineConfig;
use crate::lost::NOT_CONTAINED;
use crate::plan::RulePlan;
use crate::rule::Rule;
use crate::ruleset::RuleSet;

/// So many events are shown between two looks whether anybody waits.
const LOOK_EVERY: usize = 512;
/// A rule may take so long for one look, milliseconds: six times as long as live, since the thread gives way to all others, and who keeps the machine busy
/// must not have rules stopped here.
const RULE_BUDGET_MS: i64 = 60_000;
const FOUND_LATE: &str = "events of it came too late, and it was found when they were caught up: nobody is contained on that";

/// A rule as it runs.
#[derive(Clone, Debug)]
pub struct LateRule {
    pub text: String,
    /// Matches of before are none.
    pub since: Timestamp,
}

/// A part of a tenant's time, and what came late to it.
#[derive(Clone, Debug)]
pub struct LatePart {
    pub tenant: TenantId,
    /// Instants that are looked at: from the first to before the second.
    pub from: Timestamp,
    pub to: Timestamp,
    /// How much on both sides is looked at too: what is told there is known, and not told. As long as the longest window it is whole; 0 without.
    pub beside: i64,
    /// Before this time nothing changes any more.
    pub final_before: Timestamp,
    /// When the bus stored the first and the last of the late events.
    pub first_bus: Timestamp,
    pub last_bus: Timestamp,
    /// Which they are, by lane: of each run of receipts the first and the last. Not all of them have to be named.
    pub receipts: BTreeMap<String, BTreeMap<i64, i64>>,
    /// None of them reads alerts or side tables.
    pub rules: Vec<LateRule>,
    pub clock: Arc<dyn Clock>,
}

/// What is to be told.
#[derive(Debug, Default)]
pub struct LateFound {
    pub alerts: Vec<Alert>,
    /// Those that stood too with the late events of before: they were told, unless the part that has them then is still to come.
    pub again: Vec<Alert>,
    /// Of alerts that were found late before.
    pub retractions: Vec<Retraction>,
    /// Ids of rules that failed over the events: nothing of theirs is told.
    pub failed: BTreeSet<String>,
}

/// Which of the late events count.
#[derive(Clone, Copy, Debug)]
enum View {
    /// None: as live.
    Live,
    /// Those that came before.
    Before,
    /// And those that are caught up now.
    After,
}

/// What stands in one view, and which rules failed.
#[derive(Debug, Default)]
struct Standing {
    alerts: BTreeMap<String, Alert>,
    failed: BTreeSet<String>,
}

impl LatePart {
    /// Looks at all of the tenant's events that the rules may need for it, late ones too. None: nobody waits any more. An error says why it cannot be
    /// told.
    pub fn find(&self, mut events: Vec<SecurityEvent>, is_waited_for: &dyn Fn() -> bool) -> Result<Option<LateFound>, String> {
        // Whoever was asked: nobody else's events reach the tenant's alerts (L-TENANT).
        events.retain(|event| event.tenant_id == self.tenant);
        events.sort_by(|a, b| a.order_key().cmp(&b.order_key()));
        let events: Vec<Arc<SecurityEvent>> = events.into_iter().map(Arc::new).collect();
        let Some(live) = self.standing(&events, View::Live, is_waited_for)? else { return Ok(None) };
        let Some(after) = self.standing(&events, View::After, is_waited_for)? else { return Ok(None) };
        // Most of the time there are none of before.
        let before = if events.iter().any(|event| is_proved_late(event) && event.bus_ts < Some(self.first_bus)) {
            let Some(before) = self.standing(&events, View::Before, is_waited_for)? else { return Ok(None) };
            before
        } else {
            Standing::default()
        };
        self.difference(&live, &before, &after).map(Some).map_err(|error| format!("an alert's key is not canonical: {error}"))
    }

    fn difference(&self, live: &Standing, before: &Standing, after: &Standing) -> Result<LateFound, CanonError> {
        let failed: BTreeSet<String> = [live, before, after].into_iter().flat_map(|view| view.failed.iter().cloned()).collect();
        let is_asked = |alert: &Alert| self.from <= alert.last_ts && alert.last_ts < self.to && !failed.contains(&alert.rule_id);
        let mut found = LateFound::default();
        for (alert_id, alert) in &after.alerts {
            if live.alerts.contains_key(alert_id) || !is_asked(alert) {
                continue;
            }
            let told = if before.alerts.contains_key(alert_id) { &mut found.again } else { &mut found.alerts };
            told.push(found_late(alert.clone())?);
        }
        for (alert_id, alert) in before.alerts.iter().filter(|_| self.beside > 0) {
            let stands = live.alerts.contains_key(alert_id) || after.alerts.contains_key(alert_id);
            if !stands && is_asked(alert) {
                let told = found_late(alert.clone())?;
                found.retractions.push(Retraction {
                    alert_id: told.alert_id,
                    tenant_id: told.tenant_id,
                    rule_id: told.rule_id,
                    detected_at: self.clock.now(),
                });
            }
        }
        found.failed = failed;
        Ok(found)
    }

    /// What stands where the late events of a view count.
    fn standing(
        &self,
        events: &[Arc<SecurityEvent>],
        view: View,
        is_waited_for: &dyn Fn() -> bool,
    ) -> Result<Option<Standing>, String> {
        let (rules, since) = self.rule_set()?;
        let (from, to) = (self.from.plus_micros(-self.beside), self.to.plus_micros(self.beside));
        let known_to = self.final_before.plus_seconds(EngineConfig::new(Arc::clone(&self.clock)).lateness_s);
        let run = Backtest::of(rules, Arc::clone(&self.clock), Some(from), Some(to));
        let mut run = run.in_order(Some(known_to)).keep_whole().with_rule_budget(RULE_BUDGET_MS);
        for (place, event) in events.iter().enumerate() {
            if place.is_multiple_of(LOOK_EVERY) && !is_waited_for() {
                return Ok(None);
            }
            run.take_shared(self.seen(event, view));
        }
        let (mut alerts, failed) = run.finish_whole();
        alerts.retain(|_, alert| since.get(&alert.rule_id).is_some_and(|since| alert.last_ts >= *since));
        Ok(Some(Standing { alerts, failed }))
    }

    /// The rules, and since when the matches of each count.
    fn rule_set(&self) -> Result<(RuleSet, BTreeMap<String, Timestamp>), String> {
        let (mut rules, mut since) = (Vec::new(), BTreeMap::new());
        for rule in &self.rules {
            let loaded = Rule::parse(&rule.text, Path::new("rule.sql")).and_then(|parsed| {
                let plan = RulePlan::load(&parsed)?;
                Ok((parsed, plan))
            });
            let (parsed, plan) = loaded.map_err(|error| error.to_string())?;
            since.insert(parsed.header.id.clone(), rule.since);
            rules.push((parsed, plan));
        }
        Ok((RuleSet::of(rules), since))
    }

    /// The event as it is in a view.
    fn seen(&self, event: &Arc<SecurityEvent>, view: View) -> Arc<SecurityEvent> {
        let came_before = || is_proved_late(event) && event.bus_ts < Some(self.first_bus);
        let came_by_now = || is_proved_late(event) && event.bus_ts <= Some(self.last_bus);
        // Detection holds lanes, and the lake does not: what was late for one need not be for the other.
        let late = match view {
            View::Live => event.late || self.is_named(event),
            View::Before => (event.late && !came_before()) || self.is_named(event),
            View::After => event.late && !came_by_now(),
        };
        if late == event.late { Arc::clone(event) } else { Arc::new(SecurityEvent { late, ..SecurityEvent::clone(event) }) }
    }

    fn is_named(&self, event: &SecurityEvent) -> bool {
        let (Some(lane), Some(seq)) = (&event.lane, event.seq) else { return false };
        let run = self.receipts.get(lane).and_then(|runs| runs.range(..=seq).next_back());
        run.is_some_and(|(_, last)| seq <= *last)
    }
}

/// What did not prove itself anybody can have written, at any time and of any: it is not caught up.
fn is_proved_late(event: &SecurityEvent) -> bool {
    event.late && event.verified && event.lane.is_some()
}

/// The alert as it is told where it is found late. One that would contain asks for no response, and has an id of its own: under that of live, it would
/// keep live from telling the same with its response.
fn found_late(mut alert: Alert) -> Result<Alert, CanonError> {
    alert.found_late = true;
    if alert.respond.is_empty() {
        return Ok(alert);
    }
    alert.respond.clear();
    alert.fields.insert(NOT_CONTAINED.to_owned(), FOUND_LATE.into());
    if let Some(first) = alert.event_ids.first() {
        alert.alert_id = late_alert_id(&alert.tenant_id, &alert.rule_id, &alert.key, *first)?;
    }
    Ok(alert)
}
