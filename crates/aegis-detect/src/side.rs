//! Side tables: what is known of an agent from long before any window, as of each event. Of `first_seen` two columns of `events`: since when the agent
//! is used, and since when it uses the event's tool and action. Of `baseline` two more: how often it is used in a usual hour, and in how many it is.
//! Of `registry`, in a module of its own, what control has registered of it.
//! Promises that what stands there is a function of the events that are in time and proved, whatever the order in which they came; that no tenant has
//! more than its quota, and no agent more than a part of that; and to say of which agents something else is now known than before.

mod columns;
mod registry;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use aegis_model::{Decision, EventKind, SecurityEvent, TenantId, Timestamp};
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};

use crate::baseline::{BYTES_OF_HOUR, Baseline, Hours, begin_of, hour_of};
use crate::bucket::Quotas;
use crate::output::Evidence;
pub(crate) use columns::{SIDE_COLUMNS, is_like_a_side_column};
use registry::Registry;

/// The tables, as all share them who run queries.
pub(crate) type Sides = Arc<RwLock<SideTables>>;

const DAY: i64 = 86_400_000_000;
/// After a pause that is longer, an agent or an action counts as never used.
const PAUSE: i64 = 90 * DAY;
/// How far back the history of a tenant is needed for the tables to say the same of an event, in seconds: a pause, and a day of what is known
/// before anything is new.
pub(crate) const HISTORY_S: i64 = (PAUSE + DAY) / 1_000_000;
/// What is before a pause is kept so much longer: a rule's window is a day at most, and what was settled is a little behind.
const LINGERS: i64 = DAY + DAY / 24;
/// It is looked so often for what is over.
const TIDY_STEP: i64 = DAY / 24;
/// About what an agent, or an action of one, takes beside its texts, in bytes.
const ENTRY: usize = 96;

/// What is known of all tenants.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct SideTables {
    tenants: HashMap<TenantId, OfTenant>,
    registry: Registry,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct OfTenant {
    agents: HashMap<String, OfAgent>,
    /// What they take.
    bytes: usize,
    /// The newest time of an event of the tenant.
    newest: Option<i64>,
    /// Up to where it was looked for what is over.
    tidied: Option<i64>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct OfAgent {
    used: Spans,
    /// By tool and action.
    actions: HashMap<String, HashMap<String, Spans>>,
    hours: Hours,
    bytes: usize,
}

/// Of whom something else is known than before, or would be if there were room.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// Of each tenant's agents: from when on its events are to be looked at again.
    agents: BTreeMap<TenantId, BTreeMap<String, Timestamp>>,
    /// Uses that a quota refused.
    refused: Vec<(TenantId, Evidence)>,
}

impl Changes {
    pub(crate) fn agents(&self) -> impl Iterator<Item = (&TenantId, &BTreeMap<String, Timestamp>)> {
        self.agents.iter()
    }

    pub(crate) fn refused(&self) -> &[(TenantId, Evidence)] {
        &self.refused
    }

    fn note(&mut self, tenant: &TenantId, agent: &str, from: i64) {
        let from = Timestamp::from_micros(from);
        let known = self.agents.entry(tenant.clone()).or_default().entry(agent.to_owned()).or_insert(from);
        *known = from.min(*known);
    }
}

impl SideTables {
    /// Takes in an event that is in time.
    pub(crate) fn take(&mut self, event: &SecurityEvent, quotas: Quotas, changes: &mut Changes) {
        let at = event.ts.as_micros();
        let tenant = self.tenants.entry(event.tenant_id.clone()).or_default();
        let newest_before = tenant.newest;
        tenant.newest = newest_before.max(Some(at));
        self.registry.take(event, newest_before, quotas, changes);
        let Some(used) = Use::of(event).filter(|_| is_use(event)) else { return };
        let (changed, is_refused) = tenant.add(used, at, newest_before.unwrap_or(at), quotas);
        // Mostly an event is the newest, and there is none of whom it could change anything.
        if let Some(from) = changed.filter(|from| newest_before.is_some_and(|newest| *from <= newest)) {
            changes.note(&event.tenant_id, used.agent, from);
        }
        if is_refused {
            changes.refused.push((event.tenant_id.clone(), Evidence::of(event)));
        }
    }

    /// Forgets what was used last before a pause that is over: nothing that comes in time, and no event that is in a window, is within reach of it.
    pub(crate) fn forget(&mut self, tenant: &TenantId, final_before: Timestamp) {
        self.registry.forget(tenant, final_before);
        let Some(tenant) = self.tenants.get_mut(tenant) else { return };
        let now = final_before.as_micros();
        if tenant.tidied.is_some_and(|tidied| now.saturating_sub(tidied) < TIDY_STEP) {
            return;
        }
        tenant.tidied = Some(now);
        let before = now.saturating_sub(PAUSE + LINGERS);
        let mut freed = 0;
        tenant.agents.retain(|_, agent| {
            let OfAgent { used, actions, hours, bytes } = agent;
            let (of_before, hours_before) = (*bytes, hours.len());
            hours.forget(hour_of(now.saturating_sub(LINGERS)));
            *bytes -= BYTES_OF_HOUR * (hours_before - hours.len());
            for (tool, of_tool) in actions.iter_mut() {
                of_tool.retain(|action, spans| {
                    spans.forget(before);
                    *bytes -= if spans.is_empty() { bytes_of_action(tool, action) } else { 0 };
                    !spans.is_empty()
                });
            }
            actions.retain(|_, of_tool| !of_tool.is_empty());
            used.forget(before);
            let stays = !used.is_empty() || !actions.is_empty();
            freed += if stays { of_before - *bytes } else { of_before };
            stays
        });
        tenant.bytes -= freed;
    }

    /// Forgets all of a tenant.
    pub(crate) fn forget_all(&mut self, tenant: &TenantId) {
        self.tenants.remove(tenant);
    }

    fn agent(&self, event: &SecurityEvent) -> Option<&OfAgent> {
        self.tenants.get(&event.tenant_id)?.agents.get(event.agent_id.as_deref()?)
    }

    fn baseline(&self, event: &SecurityEvent) -> Option<Baseline> {
        self.agent(event)?.hours.baseline(hour_of(event.ts.as_micros()))
    }

    fn first_seen_agent(&self, event: &SecurityEvent) -> Option<Timestamp> {
        self.agent(event)?.used.first(event.ts)
    }

    fn first_seen_agent_tool_action(&self, event: &SecurityEvent) -> Option<Timestamp> {
        let used = Use::of(event)?;
        self.agent(event)?.actions.get(used.tool)?.get(used.action)?.first(event.ts)
    }

    /// True if anything is known of the tenant's agents.
    pub(crate) fn knows(&self, tenant: &TenantId) -> bool {
        self.tenants.get(tenant).is_some_and(|tenant| !tenant.agents.is_empty()) || self.registry.knows(tenant)
    }

    /// About what each tenant's part takes, in bytes.
    pub(crate) fn bytes(&self) -> impl Iterator<Item = (&TenantId, usize)> {
        self.tenants.iter().map(|(tenant, own)| (tenant, own.bytes)).chain(self.registry.bytes())
    }

    /// The same without some of the tenants.
    pub(crate) fn without(&self, left_out: &BTreeSet<TenantId>) -> Self {
        let kept = self.tenants.iter().filter(|(tenant, _)| !left_out.contains(*tenant));
        let tenants = kept.map(|(tenant, own)| (tenant.clone(), own.clone())).collect();
        Self { tenants, registry: self.registry.without(left_out) }
    }
}

/// Who used what.
#[derive(Clone, Copy)]
struct Use<'a> {
    agent: &'a str,
    tool: &'a str,
    action: &'a str,
}

impl<'a> Use<'a> {
    fn of(event: &'a SecurityEvent) -> Option<Self> {
        Some(Self { agent: event.agent_id.as_deref()?, tool: event.tool.as_deref()?, action: event.action.as_deref()? })
    }
}

/// True for a proved call that was not denied. What is denied is no use: anybody can ask for tools that nobody has registered, without end, and an
/// attempt that is denied must not make the next one look known.
fn is_use(event: &SecurityEvent) -> bool {
    let may_run = matches!(event.decision, Some(Decision::Allow | Decision::RequireApproval));
    event.verified && event.kind == EventKind::AuthorizeDecision && may_run
}

fn bytes_of_agent(agent: &str) -> usize {
    ENTRY + agent.len()
}

fn bytes_of_action(tool: &str, action: &str) -> usize {
    ENTRY + tool.len() + action.len()
}

impl OfTenant {
    /// Takes in a use, where events up to `newest` are there. Answers from when on something else is said of the agent's, if it is, and whether a
    /// quota refused it.
    fn add(&mut self, used: Use<'_>, at: i64, newest: i64, quotas: Quotas) -> (Option<i64>, bool) {
        let Use { agent, tool, action } = used;
        let known = self.agents.get(agent);
        let is_new_agent = known.is_none();
        let is_known = known.is_some_and(|known| known.actions.get(tool).is_some_and(|actions| actions.contains_key(action)));
        let mut is_refused = false;
        if !is_known {
            let bytes = bytes_of_action(tool, action) + if is_new_agent { bytes_of_agent(agent) } else { 0 };
            let own = known.map_or(0, |known| known.bytes) + bytes;
            is_refused = self.bytes + bytes > quotas.seen_bytes_per_tenant || own > quotas.seen_bytes_per_agent();
            if !is_refused {
                self.bytes += bytes;
                let known = self.agents.entry(agent.to_owned()).or_default();
                known.bytes = own;
                known.actions.entry(tool.to_owned()).or_default().insert(action.to_owned(), Spans::default());
            }
        }
        let Some(known) = self.agents.get_mut(agent) else { return (None, is_refused) };
        let of_agent = known.used.add(at);
        let of_action = known.actions.get_mut(tool).and_then(|actions| actions.get_mut(action)).and_then(|spans| spans.add(at));
        let hours_before = known.hours.len();
        let of_hours = known.hours.add(hour_of(at), hour_of(newest)).map(begin_of);
        let bytes = BYTES_OF_HOUR * known.hours.len().saturating_sub(hours_before);
        known.bytes += bytes;
        self.bytes += bytes;
        (of_agent.into_iter().chain(of_action).chain(of_hours).min(), is_refused)
    }
}

/// Times of use without a pause between them, as first and last of each; ascending, in microseconds. Mostly one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
struct Spans(Vec<(i64, i64)>);

impl Spans {
    /// Takes in a time of use. Answers from when on something else is said than before, if it is.
    fn add(&mut self, at: i64) -> Option<i64> {
        // Those that are within a pause of it: two at most, with nothing but it between them.
        let from = self.0.partition_point(|(_, last)| last.saturating_add(PAUSE) < at);
        let to = self.0.partition_point(|(first, _)| first.saturating_sub(PAUSE) <= at);
        let Some((first, last)) = self.0[from..to].first().copied() else {
            self.0.insert(from, (at, at));
            return Some(at);
        };
        if first <= at && at <= last {
            return None;
        }
        let newest = self.0[from..to].last().map_or(last, |(_, last)| *last);
        self.0.drain(from + 1..to);
        self.0[from] = (first.min(at), newest.max(at));
        Some(if at < first { at } else { last.saturating_add(PAUSE).saturating_add(1) })
    }

    /// Since when it is used at a time, without a pause up to then.
    fn first(&self, at: Timestamp) -> Option<Timestamp> {
        let at = at.as_micros();
        let behind = self.0.partition_point(|(first, _)| *first <= at);
        let (first, last) = self.0[behind.checked_sub(1)?];
        (at.saturating_sub(last) <= PAUSE).then(|| Timestamp::from_micros(first))
    }

    fn forget(&mut self, before: i64) {
        self.0.retain(|(_, last)| *last >= before);
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A ninth of a pause.
    const STEP: i64 = PAUSE / 9;

    /// Since when something is used at a time, told from all times of use.
    fn first_of(times: &[i64], at: i64) -> Option<i64> {
        let mut before: Vec<i64> = times.iter().copied().filter(|time| *time <= at).collect();
        before.sort_unstable();
        let (mut first, mut next) = (None, at);
        while let Some(time) = before.pop().filter(|time| next - time <= PAUSE) {
            (first, next) = (Some(time), time);
        }
        first
    }

    proptest! {
        #[test]
        fn what_is_said_is_that_of_all_times_in_whatever_order_and_each_change_is_told(
            steps in prop::collection::vec((0..60i64, -1..2i64), 0..14),
        ) {
            let mut spans = Spans::default();
            let mut times: Vec<i64> = Vec::new();
            // Around each step and a pause after it, to the microsecond.
            let asked: Vec<i64> = (0..80).flat_map(|step| (-2..=2).map(move |off| step * STEP + off)).collect();
            let said = |spans: &Spans| -> Vec<Option<i64>> {
                asked.iter().map(|at| spans.first(Timestamp::from_micros(*at)).map(Timestamp::as_micros)).collect()
            };
            for (step, off) in steps {
                let (at, before) = (step * STEP + off, said(&spans));
                let changed = spans.add(at);
                times.push(at);
                let after = said(&spans);
                for ((asked, before), after) in asked.iter().zip(before).zip(&after) {
                    prop_assert_eq!(*after, first_of(&times, *asked), "at {} of {:?}", asked, times);
                    prop_assert!(before == *after || changed.is_some_and(|from| from <= *asked), "{} changed untold", asked);
                }
            }
            prop_assert!(spans.0.windows(2).all(|pair| pair[0].1 + PAUSE < pair[1].0), "{:?}", spans);
        }
    }

    fn used(tenant: &str, agent: &str, action: &str, at: i64) -> SecurityEvent {
        let ts = Timestamp::from_micros(at);
        let mut event = SecurityEvent::new(TenantId::new(tenant).unwrap(), "e", "edge", EventKind::AuthorizeDecision, ts);
        (event.verified, event.decision) = (true, Some(Decision::Allow));
        (event.agent_id, event.tool, event.action) = (Some(agent.into()), Some("tool".into()), Some(action.into()));
        event
    }

    fn take(tables: &mut SideTables, event: &SecurityEvent, quotas: Quotas) -> Changes {
        let mut changes = Changes::default();
        tables.take(event, quotas, &mut changes);
        changes
    }

    #[test]
    fn only_a_proved_call_that_may_run_is_a_use_and_of_its_own_tenant_and_agent() {
        let mut tables = SideTables::default();
        let call = used("t", "a", "read", 1000);
        let no_uses = [
            SecurityEvent { verified: false, ..call.clone() },
            SecurityEvent { decision: Some(Decision::Deny), ..call.clone() },
            SecurityEvent { decision: None, ..call.clone() },
            SecurityEvent { kind: EventKind::ToolOutcome, ..call.clone() },
            SecurityEvent { tool: None, ..call.clone() },
            SecurityEvent { action: None, ..call.clone() },
            SecurityEvent { agent_id: None, ..call.clone() },
        ];
        for event in &no_uses {
            take(&mut tables, event, Quotas::default());
            assert_eq!(tables.first_seen_agent(&call), None, "{event:?}");
        }
        take(&mut tables, &used("t", "a", "read", 500), Quotas::default());
        take(&mut tables, &SecurityEvent { decision: Some(Decision::RequireApproval), ..call.clone() }, Quotas::default());
        let seen = |event: &SecurityEvent| {
            let micros = |seen: Option<Timestamp>| seen.map(Timestamp::as_micros);
            (micros(tables.first_seen_agent(event)), micros(tables.first_seen_agent_tool_action(event)))
        };
        assert_eq!(seen(&call), (Some(500), Some(500)));
        assert_eq!(seen(&used("t", "a", "write", 1000)), (Some(500), None));
        assert_eq!(seen(&used("t", "a", "read", 499)), (None, None), "as of the event");
        assert_eq!(seen(&used("t", "b", "read", 1000)), (None, None));
        assert_eq!(seen(&used("other", "a", "read", 1000)), (None, None));
        assert_eq!(seen(&no_uses[1]), (Some(500), Some(500)), "of what is no use it is known too");
    }

    #[test]
    fn an_agent_fills_a_quarter_at_most_and_what_is_over_makes_room() {
        let quotas = Quotas { seen_bytes_per_tenant: 4000, ..Quotas::default() };
        let mut tables = SideTables::default();
        let refused = |tables: &mut SideTables, agent: &str, n: i64, at: i64| {
            !take(tables, &used("t", agent, &format!("action-{n:02}"), at), quotas).refused().is_empty()
        };
        // About a hundred bytes each.
        let of_loud: Vec<bool> = (0..20).map(|n| refused(&mut tables, "loud", n, n)).collect();
        let taken = of_loud.iter().filter(|refused| !**refused).count();
        assert!((5..10).contains(&taken) && of_loud[taken..].iter().all(|refused| *refused), "{of_loud:?}");
        assert!(!refused(&mut tables, "loud", 0, 100), "what is known goes on");
        assert!(!refused(&mut tables, "quiet", 0, 100));
        let unknown = used("t", "loud", "action-19", 200);
        assert_eq!(tables.first_seen_agent_tool_action(&unknown), None, "of what was refused nothing is said");
        for n in 0..40 {
            refused(&mut tables, &format!("agent-{n:02}"), 0, 100);
        }
        assert!(refused(&mut tables, "new", 0, 100), "the tenant has as much as it may have");
        let most = |tables: &SideTables| tables.bytes().map(|(_, bytes)| bytes).max().unwrap_or(0);
        assert!(most(&tables) <= 4000);
        let tenant = TenantId::new("t").unwrap();
        tables.forget(&tenant, Timestamp::from_micros(PAUSE));
        let known = tables.first_seen_agent(&used("t", "quiet", "action-00", PAUSE));
        assert_eq!(known, Some(Timestamp::from_micros(100)), "a pause is not over before it is");
        tables.forget(&tenant, Timestamp::from_micros(101 + PAUSE + LINGERS));
        assert_eq!((most(&tables), tables.knows(&tenant)), (0, false), "all of it is given back");
        assert!(!refused(&mut tables, "new", 0, 2 * PAUSE));
    }

    #[test]
    fn a_usual_hour_is_that_of_the_agents_own_uses_before_the_events_hour() {
        let mut tables = SideTables::default();
        let hour = |hour: i64| begin_of(hour);
        for (at, uses) in [(hour(1), 3), (hour(2), 5), (hour(3) - 1, 1), (hour(3), 7)] {
            for event in [used("t", "a", "read", at), used("t", "a", "write", at)] {
                (0..uses).for_each(|_| drop(take(&mut tables, &event, Quotas::default())));
            }
        }
        // None of these is a use of the agent.
        let call = used("t", "a", "read", hour(2));
        let denied = SecurityEvent { decision: Some(Decision::Deny), ..call.clone() };
        for event in [
            denied,
            SecurityEvent { verified: false, ..call.clone() },
            used("t", "b", "read", hour(2)),
            used("o", "a", "read", hour(2)),
        ] {
            take(&mut tables, &event, Quotas::default());
        }
        let usual = |at: i64| tables.baseline(&used("t", "a", "other", at));
        let both = |uses: i64, hours: i64| Some(Baseline { uses, hours });
        assert_eq!([hour(1), hour(2), hour(3) - 1].map(usual), [None, both(6, 1), both(6, 1)]);
        // Two hours, of 6 and 12: the least that half of them do not exceed.
        assert_eq!([hour(3), hour(4) - 1].map(usual), [both(6, 2), both(6, 2)]);
        assert_eq!(usual(hour(4)), both(12, 3));
        let late = take(&mut tables, &used("t", "a", "read", hour(2) + 1), Quotas::default());
        let changed: Vec<_> = late.agents().flat_map(|(_, agents)| agents.values().copied()).collect();
        assert!(changed.is_empty(), "no hour's usual is another for it: {changed:?}");
        let late = take(&mut tables, &used("t", "a", "read", hour(0)), Quotas::default());
        let changed: Vec<_> = late.agents().flat_map(|(_, agents)| agents.values().copied()).collect();
        assert_eq!(changed, [Timestamp::from_micros(hour(0))], "since when it is used is another");
        let (bytes, tenant) = (tables.tenants[&call.tenant_id].bytes, call.tenant_id);
        tables.forget(&tenant, Timestamp::from_micros(hour(4 + 168) + LINGERS));
        assert_eq!(
            tables.tenants[&tenant].bytes,
            bytes - 5 * BYTES_OF_HOUR,
            "hours that are over are given back: four of one agent, one of another"
        );
    }

    #[test]
    fn forgetting_changes_nothing_that_can_be_asked_for() {
        let mut tables = SideTables::default();
        for at in [0, PAUSE, 3 * PAUSE] {
            take(&mut tables, &used("t", "a", "read", at), Quotas::default());
        }
        let asked = |tables: &SideTables, at: i64| tables.first_seen_agent_tool_action(&used("t", "a", "read", at));
        let (now, oldest) = (2 * PAUSE + LINGERS, 2 * PAUSE + LINGERS - DAY);
        let before: Vec<_> = [oldest, now, 3 * PAUSE, 4 * PAUSE].map(|at| asked(&tables, at)).into();
        tables.forget(&TenantId::new("t").unwrap(), Timestamp::from_micros(now + 1));
        assert_eq!([oldest, now, 3 * PAUSE, 4 * PAUSE].map(|at| asked(&tables, at)).to_vec(), before);
        assert_eq!(asked(&tables, PAUSE), None, "what is over is gone");
    }
}
