//! What queries make of events before they ask whose these are. Rules that differ in how far they look back, or in what they hold a count against, begin alike; and of
//! the same events the same is made there: once, for all of them.
//! Promises that two queries begin alike only where it is the same plan, of which the same is read; and that what was made of events is taken for these alone, in this
//! order. What is known of keys, and kept, is each rule's own.

use std::collections::HashMap;
use std::fmt;
use std::hash::{DefaultHasher, Hasher};
use std::sync::{Arc, Weak};

use aegis_model::{SecurityEvent, Timestamp};
use aegis_sql::tree;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::error::Result;
use datafusion::logical_expr::LogicalPlan;

use crate::evaluate::RunningRule;
use crate::name::SharedNames;
use crate::pipeline::Pipeline;
use crate::schema::EventBatch;
use crate::side::Sides;
use crate::windows::{Prepared, Read};

/// Events of which something is kept for others at most, and what their columns take, of all beginnings together: it is for a moment, and how long a text is, is
/// the caller's to choose.
const MOST_EVENTS: usize = 131_072;
const MOST_BYTES: usize = 64 << 20;
/// In so many pieces at most: who looks for one goes through them. A rule that is shown each tenant's events by themselves, for one tenant's fail, makes very many.
const MOST_PIECES: usize = 1024;

/// How a query begins: all that goes before its first windows, and what these read. Of its plan nothing is derived: see [`aegis_sql::tree`].
pub(crate) struct Beginning {
    hash: u64,
    plan: LogicalPlan,
    /// The columns behind each step; none behind a filter. Which are made by then is the step's, and not the plan's.
    steps: Vec<Option<SchemaRef>>,
    read: Read,
}

impl Beginning {
    pub(crate) fn new(plan: &LogicalPlan, steps: Vec<Option<SchemaRef>>, read: Read) -> Self {
        let mut hasher = DefaultHasher::new();
        tree::hash_plan(plan, &mut hasher);
        Self { hash: hasher.finish(), plan: tree::copied_plan(plan), steps, read }
    }
}

impl PartialEq for Beginning {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash
            && self.steps == other.steps
            && self.read == other.read
            && tree::same_plan(&self.plan, &other.plan)
    }
}

impl fmt::Debug for Beginning {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Beginning").field("hash", &self.hash).finish_non_exhaustive()
    }
}

/// What was made of events.
#[derive(Debug)]
pub(crate) struct Begun {
    pub(crate) events: EventBatch,
    pub(crate) rows: RecordBatch,
    /// Of each row which of the events it is.
    pub(crate) places: Vec<usize>,
    /// What the first windows read of the rows.
    pub(crate) windows: Vec<Prepared>,
}

impl Begun {
    /// What its columns take.
    fn bytes(&self) -> usize {
        self.events.made_bytes() + self.rows.get_array_memory_size()
    }

    /// True if it is of these very events.
    fn is_of(&self, events: &[Arc<SecurityEvent>]) -> bool {
        let own = self.events.rows();
        own.len() == events.len() && own.iter().zip(events).all(|(one, other)| Arc::ptr_eq(one, other))
    }
}

/// The beginnings that rules have, each once, and what was made for those that several have.
#[derive(Debug, Default)]
pub(crate) struct Beginnings {
    known: Vec<Arc<Beginning>>,
    made: Vec<Made>,
    /// Of all that was made.
    events: usize,
    bytes: usize,
}

#[derive(Debug)]
struct Made {
    of: Weak<Beginning>,
    begun: Arc<Begun>,
    bytes: usize,
    /// How many may still ask for it.
    left: usize,
}

impl Beginnings {
    /// The beginning, as others have it.
    pub(crate) fn of(&mut self, beginning: Arc<Beginning>) -> Arc<Beginning> {
        // That of a rule that is gone nobody has.
        self.known.retain(|known| Arc::strong_count(known) > 1);
        if let Some(known) = self.known.iter().find(|known| **known == beginning) {
            return Arc::clone(known);
        }
        self.known.push(Arc::clone(&beginning));
        beginning
    }

    fn get(&mut self, of: &Arc<Beginning>, events: &[Arc<SecurityEvent>]) -> Option<Arc<Begun>> {
        let is_it = |made: &Made| std::ptr::eq(made.of.as_ptr(), Arc::as_ptr(of)) && made.begun.is_of(events);
        let place = self.made.iter().position(is_it)?;
        let made = self.made.get_mut(place)?;
        let begun = Arc::clone(&made.begun);
        made.left = made.left.saturating_sub(1);
        if made.left == 0 {
            let gone = self.made.swap_remove(place);
            self.events -= events.len();
            self.bytes -= gone.bytes;
        }
        Some(begun)
    }

    fn put(&mut self, of: &Arc<Beginning>, begun: &Arc<Begun>) {
        let (left, count, bytes) = (others(of), begun.events.rows().len(), begun.bytes());
        let has_room = self.made.len() < MOST_PIECES && self.events + count <= MOST_EVENTS;
        if left > 0 && has_room && self.bytes.saturating_add(bytes) <= MOST_BYTES {
            self.events += count;
            self.bytes += bytes;
            self.made.push(Made { of: Arc::downgrade(of), begun: Arc::clone(begun), bytes, left });
        }
    }

    /// The next events are others, and side tables may say something else of them.
    pub(crate) fn clear(&mut self) {
        (self.made, self.events, self.bytes) = (Vec::new(), 0, 0);
    }
}

/// How many rules beside one have its beginning: one of those who hold it is the list of all.
fn others(beginning: &Arc<Beginning>) -> usize {
    Arc::strong_count(beginning).saturating_sub(2)
}

/// The beginning of a query, if other rules have it too.
pub(crate) fn shared(pipeline: &Pipeline) -> Option<&Arc<Beginning>> {
    pipeline.beginning().filter(|beginning| others(beginning) > 0)
}

/// Events for a query.
#[derive(Debug)]
pub(crate) enum Events {
    /// It makes of them what it needs.
    Own(Box<EventBatch>),
    /// What it makes of them where it begins is there.
    Begun(Arc<Begun>),
}

impl Events {
    pub(crate) fn batch(&self) -> &EventBatch {
        match self {
            Self::Own(batch) => batch,
            Self::Begun(begun) => &begun.events,
        }
    }
}

/// Events for a query, begun if others begin as it does. What `sides` say is the same for all rules that look at one time, and nothing is kept for longer.
pub(crate) fn begin(pipeline: &Pipeline, events: Vec<Arc<SecurityEvent>>, sides: &Sides, names: &SharedNames) -> Result<Events> {
    let Some(beginning) = shared(pipeline) else {
        return Ok(Events::Own(Box::new(EventBatch::new(events).beside(sides))));
    };
    let known = names.lock().beginnings.get(beginning, &events);
    if let Some(begun) = known {
        return Ok(Events::Begun(begun));
    }
    let begun = Arc::new(pipeline.begin(EventBatch::new(events).beside(sides))?);
    names.lock().beginnings.put(beginning, &begun);
    Ok(Events::Begun(begun))
}

/// Rules that begin alike, and of whom nothing waits, rest until that of them is due that rests longest: then they look at the same events.
pub(crate) fn rest_together(rules: &mut [RunningRule]) {
    let mut until: HashMap<(usize, bool), Timestamp> = HashMap::new();
    for running in rules.iter() {
        if let Some(group) = running.rests_with() {
            let until = until.entry(group).or_insert(running.due);
            *until = running.due.max(*until);
        }
    }
    for running in rules.iter_mut().filter(|running| !running.is_behind()) {
        if let Some(until) = running.rests_with().and_then(|group| until.get(&group)) {
            running.due = *until;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::plan::RulePlan;
    use crate::rule::Rule;
    use crate::ruleset::{RuleSet, shipped_text};
    use crate::scope::Scope;
    use crate::windows::Origin;
    use aegis_model::{Decision, EventKind, TenantId};

    fn plan(seconds: u32, counted: &str, condition: &str) -> RulePlan {
        planned(seconds, counted, condition).1
    }

    /// A rule that counts in a frame of so many seconds, of the events that meet a condition.
    fn planned(seconds: u32, counted: &str, condition: &str) -> (Rule, RulePlan) {
        let text = format!(
            "/* rule\nid: T-1\nname: t-1\nversion: 1\nseverity: low\nwindow: 60s\nkey: [agent_id]\nmode: active\nrequires: any\nowner: soc\n\
             description: d\nfalse_positives: none\nchangelog:\n  - {{version: 1, date: 2026-11-22, note: n}}\n*/\n\
             SELECT agent_id, event_id, {counted} OVER w AS n FROM events WHERE {condition} WINDOW w AS (PARTITION BY agent_id \
             ORDER BY ts RANGE BETWEEN INTERVAL '{seconds}' SECOND PRECEDING AND CURRENT ROW) QUALIFY n >= {seconds}\n"
        );
        let set = RuleSet::from_texts([("T-1/rule.sql".into(), text)]).unwrap();
        set.into_planned().next().unwrap()
    }

    fn event(n: i64) -> Arc<SecurityEvent> {
        let (tenant, ts) = (TenantId::new("t").unwrap(), Timestamp::from_micros(n));
        Arc::new(SecurityEvent::new(tenant, "e", "edge", EventKind::AuthorizeDecision, ts))
    }

    #[test]
    fn queries_begin_alike_that_differ_in_how_far_they_look_and_what_they_hold_it_against_and_no_others() {
        let mut beginnings = Beginnings::default();
        let mut plans = [
            plan(10, "count(*)", "decision = 'deny'"),
            plan(20, "count(*)", "decision = 'deny'"),
            plan(10, "count(*)", "decision = 'allow'"),
            plan(10, "count(tool)", "decision = 'deny'"),
            plan(10, "count(*) FILTER (WHERE mutates_state)", "decision = 'deny'"),
        ];
        plans.iter_mut().for_each(|plan| plan.share(&mut beginnings));
        let beside = plans.each_ref().map(|plan| others(plan.follows().unwrap().beginning().unwrap()));
        assert_eq!(beside, [1, 1, 0, 0, 0]);
        // Of those that are gone nothing is left.
        drop(plans);
        plan(10, "count(*)", "decision = 'deny'").share(&mut beginnings);
        assert_eq!(beginnings.known.len(), 1);
    }

    #[test]
    fn shipped_rules_begin_as_those_do_that_look_back_less() {
        let less = [
            ("'60' SECOND", "'59' SECOND"),
            ("'5' MINUTE", "'4' MINUTE"),
            ("'2' MINUTE", "'1' MINUTE"),
            ("'15' MINUTE", "'14' MINUTE"),
        ];
        for name in ["deny-storm", "read-sensitive-then-exfil", "run-rotation", "sibling-evasion"] {
            let (path, text) = shipped_text(name).unwrap();
            let other = less.iter().fold(text.clone(), |text, (whole, less)| text.replace(whole, less));
            assert_ne!(text, other, "{name}");
            let mut beginnings = Beginnings::default();
            let plans = [text, other].map(|text| {
                let mut plan = RuleSet::from_texts([(path.clone(), text)]).unwrap().into_planned().next().unwrap().1;
                plan.share(&mut beginnings);
                plan
            });
            for plan in &plans {
                assert_eq!(others(plan.follows().unwrap().beginning().unwrap()), 1, "{name}");
            }
        }
    }

    #[test]
    fn what_is_made_is_taken_for_these_very_events_and_kept_while_another_may_ask() {
        let (names, sides) = (SharedNames::default(), Sides::default());
        let mut plans = [10, 20, 30].map(|seconds| plan(seconds, "count(*)", "decision = 'deny'"));
        plans.iter_mut().for_each(|plan| plan.share(&mut names.lock().beginnings));
        let there = [event(1), event(1)];
        let turned = [Arc::clone(&there[1]), Arc::clone(&there[0])];
        let begun =
            |of: usize, events: &[Arc<SecurityEvent>]| match begin(plans[of].follows().unwrap(), events.to_vec(), &sides, &names)
                .unwrap()
            {
                Events::Begun(begun) => begun,
                Events::Own(_) => panic!("it begins alone"),
            };
        let first = begun(0, &there);
        assert!(!Arc::ptr_eq(&first, &begun(1, &turned)), "the order is another");
        assert!(!Arc::ptr_eq(&first, &begun(1, &there[..1])), "one is missing");
        assert!(Arc::ptr_eq(&first, &begun(1, &there)) && Arc::ptr_eq(&first, &begun(2, &there)));
        // All have had it.
        let kept = || {
            let names = names.lock();
            let beginnings = &names.beginnings;
            let bytes: usize = beginnings.made.iter().map(|made| made.begun.bytes()).sum();
            assert_eq!(beginnings.bytes, bytes);
            (beginnings.made.len(), beginnings.events)
        };
        assert_eq!(kept(), (2, 3));
        assert!(!Arc::ptr_eq(&first, &begun(0, &there)));
        names.lock().beginnings.clear();
        assert_eq!(kept(), (0, 0));
        // Where there is no room each makes its own.
        names.lock().beginnings.bytes = MOST_BYTES;
        let unkept = begun(0, &there);
        assert!(!Arc::ptr_eq(&unkept, &begun(1, &there)) && names.lock().beginnings.made.is_empty());
        names.lock().beginnings.clear();
        for n in 0..=MOST_PIECES {
            begun(0, &[event(n.try_into().unwrap())]);
        }
        assert_eq!(kept(), (MOST_PIECES, MOST_PIECES));
        let alone = plan(10, "count(*)", "decision = 'allow'");
        let own = begin(alone.follows().unwrap(), there.to_vec(), &sides, &names).unwrap();
        assert!(matches!(own, Events::Own(_)));
    }

    #[test]
    fn what_rules_make_later_of_what_is_kept_is_their_own() {
        let (names, sides) = (SharedNames::default(), Sides::default());
        let mut plans = [1, 2].map(|seconds| plan(seconds, "count(*)", "decision = 'deny'"));
        plans.iter_mut().for_each(|plan| plan.share(&mut names.lock().beginnings));
        let pipeline = plans[0].follows().unwrap();
        let denied = |n| Arc::new(SecurityEvent { decision: Some(Decision::Deny), ..SecurityEvent::clone(&event(n)) });
        let events = begin(pipeline, vec![denied(1), denied(2)], &sides, &names).unwrap();
        let made = events.batch().made_bytes();
        let origins = [1, 2].map(|ts| Origin { bucket: 0, ts, place: 0, event: 0 }).to_vec();
        let (mut frames, mut rows) = ([pipeline.frames()], 0);
        let ran = pipeline.run(&events, origins, &mut frames, |found, _| {
            rows += found.num_rows();
            Ok(())
        });
        ran.unwrap();
        assert!(matches!(events, Events::Begun(_)));
        // All of them are matches, of which it said whose they are.
        assert_eq!((rows, events.batch().made_bytes()), (2, made));
    }

    /// The attack: a tenant has copies of what everybody has, so that what is made is kept for rules that never ask for it.
    #[test]
    fn for_a_tenants_own_rules_nothing_is_kept() {
        let names = SharedNames::default();
        let own = Scope::Only(TenantId::new("t").unwrap());
        let rules = [Scope::default(), own.clone(), own].map(|scope| {
            let (rule, plan) = planned(10, "count(*)", "decision = 'deny'");
            RunningRule::new(rule, plan, scope, Sides::default(), Arc::clone(&names))
        });
        assert!(rules.iter().all(|running| shared(running.plan.follows().unwrap()).is_none()));
        assert_eq!(names.lock().beginnings.known.len(), 1, "everybody's");
    }

    #[test]
    fn rules_that_begin_alike_rest_until_the_last_is_due_and_one_for_which_something_waits_no_longer() {
        let names = SharedNames::default();
        let counts = [(10, "deny"), (20, "deny"), (30, "deny"), (10, "allow")];
        let mut rules = counts.map(|(seconds, decision)| {
            let (rule, plan) = planned(seconds, "count(*)", &format!("decision = '{decision}'"));
            RunningRule::new(rule, plan, Scope::default(), Sides::default(), Arc::clone(&names))
        });
        rules.iter_mut().zip([5, 9, 2, 1]).for_each(|(running, due)| running.due = Timestamp::from_micros(due));
        let mut denied = SecurityEvent::clone(&event(1));
        (denied.decision, denied.agent_id) = (Some(Decision::Deny), Some("agent".into()));
        rules[2].wait(&Arc::new(EventBatch::new(vec![Arc::new(denied)]))).unwrap();
        assert!(rules[2].is_behind());
        rest_together(&mut rules);
        assert_eq!(rules.each_ref().map(|running| running.due.as_micros()), [9, 9, 2, 1]);
    }
}
