//! Why a rule did or did not fire on an event: what its WHERE makes of it, what stands beside it in the window, which rows the query has at its
//! instant, and whose alert they are. A rule that reads alerts sees the event as the alerts whose last evidence it is. Asks the rule's own plan,
//! and the engine for the alerts; decides nothing itself.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use aegis_model::{Clock, SecurityEvent, TenantId, Timestamp};
use datafusion::error::{DataFusionError, Result as QueryResult};

use crate::alerts::with_sources;
use crate::backtest::{Backtest, Told};
use crate::condition::Judged;
use crate::engine::EngineConfig;
use crate::error::{DetectError, RuleErrors};
use crate::explanation::{Explanation, JoinedAlert, MatchedRow, RaisedAlert};
use crate::output::{Found, Match, Reader, write_bucket};
use crate::pattern_run::PatternRun;
use crate::plan::{BucketColumn, RulePlan};
use crate::rule::Rule;
use crate::ruleset::RuleSet;
use crate::schema::{EventBatch, column_index, column_name, text_of};
use crate::shape::Shape;
use crate::side::{HISTORY_S, Sides};
use crate::verify::is_ahead_of_time;
use crate::watermark::Watermarks;

/// The longest that an episode may last, in seconds: so far back is read, for the one that a match joins and for producers that are behind.
const LOOK_BACK_S: i64 = 86_400;
/// Instants of a stepped rule that are looked at, the event's own the first of them.
const MOST_INSTANTS: usize = 1000;
/// Events that are looked through at a time for those that the rule looks at.
const SIFTED: usize = 2048;

/// A rule and an event on the way through the history around it.
#[derive(Debug)]
pub struct Explain {
    rule: Rule,
    plan: RulePlan,
    backtest: Backtest,
    watermarks: Watermarks,
    lateness_micros: i64,
    /// How far before the event all is shown that windows, episodes and side tables may need.
    needed_s: i64,
    /// All events up to here are shown.
    known_to: Timestamp,
    event: Arc<SecurityEvent>,
    is_late: bool,
    /// Events come in the order of events, and say themselves whether they are late; what the bus stored up to then is all known.
    in_order: bool,
    stored_to: Option<Timestamp>,
    /// Events that are in time and within one window of the event; those of them that the rule looks at beside it.
    unsifted: Vec<Arc<SecurityEvent>>,
    beside: Vec<Arc<SecurityEvent>>,
}

impl Explain {
    /// A rule by its text, and an event. `file` is named in errors, and the rules whose alerts the rule reads are looked for beside it.
    pub fn new(text: &str, file: &Path, event: SecurityEvent, clock: Arc<dyn Clock>) -> Result<Self, RuleErrors> {
        let mut rules = RuleSet::from_texts(with_sources(file, text))?;
        let rule = Rule::parse(text, file).map_err(|error| RuleErrors(vec![error]))?;
        let plan = RulePlan::load(&rule).map_err(|error| RuleErrors(vec![error]))?;
        rules.enable_only(&rule.header.id);
        let lateness_micros = EngineConfig::new(Arc::clone(&clock)).lateness_s * 1_000_000;
        let remembered = if rules.reads_sides() { HISTORY_S } else { 0 };
        // Of each of the rules that stand on each other an episode may have begun so long before.
        let of_episodes = LOOK_BACK_S.saturating_mul(i64::try_from(rules.levels()).unwrap_or(i64::MAX));
        let needed_s = rules.looks_back_s().saturating_add(of_episodes).saturating_add(remembered);
        let known_to = clock.now();
        let mut backtest = Backtest::of(rules, clock, None, None);
        if plan.sources.is_some() {
            let window_s = rule.header.window_s;
            backtest.remember_shown(&rule.header.id, event.ts.plus_seconds(-window_s), event.ts.plus_seconds(window_s));
        }
        let (watermarks, event) = (Watermarks::default(), Arc::new(event));
        let (unsifted, beside) = (Vec::new(), Vec::new());
        let (is_late, in_order, stored_to) = (false, false, None);
        let new = Self {
            rule,
            plan,
            backtest,
            watermarks,
            lateness_micros,
            needed_s,
            known_to,
            event,
            is_late,
            in_order,
            stored_to,
            unsifted,
            beside,
        };
        Ok(new)
    }

    /// The same over events in the order of events (see `Backtest::in_order`).
    #[must_use]
    pub fn in_order(self, stored_to: Option<Timestamp>) -> Self {
        Self { backtest: self.backtest.in_order(stored_to), in_order: true, stored_to, ..self }
    }

    fn admit(&mut self, event: &SecurityEvent) -> bool {
        let is_ahead = is_ahead_of_time(event);
        if self.in_order {
            return !is_ahead && self.watermarks.admit_in_order(event);
        }
        self.watermarks.admit(event, self.lateness_micros) && !is_ahead
    }

    /// From when (included) to when (not included) the tenant's events are needed. What came before the event decides whether it is late,
    /// however new it is.
    #[must_use]
    pub fn span(&self) -> (Timestamp, Timestamp) {
        let reach = self.window_micros() + self.lateness_micros;
        let newest = self.event.bus_ts.max(Some(self.event.ts)).unwrap_or(self.event.ts);
        let last = newest.plus_micros(reach).plus_micros(self.plan.reach.ahead + 1);
        (self.event.ts.plus_micros(-self.lateness_micros).plus_seconds(-self.needed_s), last)
    }

    /// Events from `to` on are left out, though they may be there: what did not come before it is not known not to follow.
    pub fn know_to(&mut self, to: Timestamp) {
        self.known_to = self.known_to.min(to);
        self.backtest.know_to(to);
    }

    /// The tenant's next event, in the order in which the bus had them; the event itself is one of them.
    pub fn take(&mut self, event: SecurityEvent) -> Result<(), DetectError> {
        self.take_shared(Arc::new(event))
    }

    /// The same of an event that others have too.
    pub fn take_shared(&mut self, event: Arc<SecurityEvent>) -> Result<(), DetectError> {
        let is_in_time = self.admit(&event);
        self.stored_to = self.stored_to.max(event.bus_ts);
        if event.tenant_id == self.event.tenant_id {
            if event.event_id == self.event.event_id {
                self.is_late = !is_in_time;
            }
            let distance = event.ts.as_micros().abs_diff(self.event.ts.as_micros());
            let reads_events = self.plan.sources.is_none();
            if reads_events && is_in_time && distance <= self.window_micros().unsigned_abs() {
                self.unsifted.push(Arc::clone(&event));
            }
        }
        self.backtest.take_shared(event);
        if self.unsifted.len() >= SIFTED { self.sift() } else { Ok(()) }
    }

    fn sift(&mut self) -> Result<(), DetectError> {
        let batch = Arc::new(EventBatch::new(std::mem::take(&mut self.unsifted)));
        let relevant = self.plan.relevant(&batch).map_err(|source| self.failed(source))?;
        let (columns, own) = (&self.plan.buckets, bucket_of(&self.event, &self.plan.buckets));
        self.beside.extend(relevant.into_iter().filter(|other| bucket_of(other, columns) == own));
        Ok(())
    }

    fn failed(&self, source: DataFusionError) -> DetectError {
        DetectError::Query { rule: self.rule.header.id.clone(), source }
    }

    /// Nothing follows any more.
    pub fn finish(mut self) -> Result<Explanation, DetectError> {
        self.sift()?;
        let rule = self.rule.header.id.clone();
        self.explained().map_err(|source| DetectError::Query { rule, source })
    }

    fn window_micros(&self) -> i64 {
        self.rule.header.window_s * 1_000_000
    }

    fn explained(self) -> QueryResult<Explanation> {
        let window_micros = self.window_micros();
        let final_before = self.watermarks.final_before(&self.event.tenant_id, self.lateness_micros);
        let known_to = match self.stored_to {
            Some(stored_to) if self.in_order => self.known_to.min(stored_to),
            _ => self.known_to,
        };
        let decided_before = final_before.max(Some(known_to.plus_micros(-self.lateness_micros)));
        let Self { rule, plan, backtest, event, is_late, beside, .. } = self;
        let is_deferred = plan.shape == Shape::Deferred;
        let ahead = plan.reach.ahead;
        let is_decided = |instant: Timestamp| !is_deferred || Some(instant.plus_micros(ahead)) < decided_before;
        let sides = backtest.sides();
        let (report, shown) = backtest.finish_with_shown();
        let is_event = |row: &&Arc<SecurityEvent>| row.event_id == event.event_id && row.ts == event.ts;
        let (own, mut seen) = match &plan.sources {
            None => (vec![Arc::clone(&event)], beside),
            Some(_) => (shown.iter().filter(is_event).cloned().collect(), plan.relevant(&Arc::new(EventBatch::new(shown)))?),
        };
        let seen_as = own.into_iter().map(|row| SeenAs::of(row, &plan, &sides)).collect::<QueryResult<Vec<_>>>()?;
        let passing = || seen_as.iter().filter(|one| one.passes);
        let subject = passing().find(|one| one.bucket.is_some()).or_else(|| passing().next()).or_else(|| seen_as.first());
        let passes = subject.is_some_and(|one| one.passes);
        let buckets: BTreeSet<&String> = passing().filter_map(|one| one.bucket.as_ref()).collect();
        seen.retain(|row| !is_late && bucket_of(row, &plan.buckets).is_some_and(|bucket| buckets.contains(&bucket)));
        seen.sort_by(|a, b| a.order_key().cmp(&b.order_key()));
        let is_seen = !is_late && !buckets.is_empty();
        let (oldest, newest) = (event.ts.plus_micros(ahead - window_micros), event.ts.plus_micros(ahead));
        let own_bucket = subject.and_then(|one| one.bucket.clone());
        let is_beside =
            |row: &&Arc<SecurityEvent>| oldest <= row.ts && row.ts <= newest && bucket_of(row, &plan.buckets) == own_bucket;
        let in_window = seen.iter().filter(is_beside).count();
        let (mut rows, mut later) = (Vec::new(), None);
        // Beside a row further on not all is here that it looks at.
        let whole_to = event.ts.plus_micros(window_micros - ahead);
        let found = matches_from(&rule, &plan, &sides, &event, &seen)?;
        for found in found.into_iter().filter(|one| is_decided(one.instant) && one.instant <= whole_to) {
            let is_evidence = found.evidence.iter().any(|evidence| evidence.event_id == event.event_id);
            let (instant, evidence) = (found.instant, found.evidence.len());
            let told_by_it = report.standing.values().filter(|told| told.rule_id == rule.header.id);
            let alert = alert_of(&found, told_by_it, rule.header.suppress_s);
            let row = MatchedRow { instant, key: found.key, fields: found.fields, evidence, is_evidence, alert };
            if instant == event.ts {
                rows.push(row);
            } else if is_evidence && later.is_none() {
                later = Some(row);
            }
        }
        let seen_row = subject.map_or(&event, |one| &one.row);
        let split = |column: &BucketColumn| {
            let value = text_of(seen_row, column.event_column).map(std::borrow::Cow::into_owned);
            (column_name(column.event_column).to_owned(), value)
        };
        let split_by = plan.buckets.iter().map(split).collect();
        let conditions = subject.map(|one| one.conditions.clone()).unwrap_or_default();
        Ok(Explanation {
            event_id: event.event_id,
            tenant_id: event.tenant_id.clone(),
            kind: event.kind,
            ts: event.ts,
            verified: event.verified,
            rule_id: rule.header.id,
            rule_name: rule.header.name,
            rule_version: rule.header.version,
            mode: rule.header.mode,
            shape: plan.shape,
            pattern: PatternRun::of(&plan),
            stepped_for: plan.stepped_for,
            passes,
            conditions,
            late: is_late,
            split_by,
            window_s: rule.header.window_s,
            ahead_s: ahead / 1_000_000,
            in_window,
            undecided: (is_seen && !is_decided(event.ts)).then(|| event.ts.plus_micros(ahead)),
            fired: rows.iter().any(|row| row.is_evidence),
            rows,
            later,
            stopped: report.rules.iter().find_map(|result| result.quarantined.clone()),
            over_quota: report.rules.iter().map(|result| result.over_quota).sum(),
            raised: plan.sources.is_some().then(|| seen_as.into_iter().map(SeenAs::raised).collect()),
        })
    }
}

/// The event as a row of the table that the rule reads, and what its WHERE makes of it.
struct SeenAs {
    row: Arc<SecurityEvent>,
    conditions: Vec<Judged>,
    passes: bool,
    bucket: Option<String>,
}

impl SeenAs {
    fn of(row: Arc<SecurityEvent>, plan: &RulePlan, sides: &Sides) -> QueryResult<Self> {
        let alone = Arc::new(EventBatch::new(vec![Arc::clone(&row)]).beside(sides));
        let conditions = plan.conditions().iter().map(|condition| condition.judge(&alone)).collect::<QueryResult<Vec<_>>>()?;
        let passes = !plan.relevant(&alone)?.is_empty() && conditions.iter().all(|judged| judged.holds == Some(true));
        let bucket = bucket_of(&row, &plan.buckets);
        Ok(Self { row, conditions, passes, bucket })
    }

    /// Of a row of `alerts`: which it is.
    fn raised(self) -> RaisedAlert {
        let text = |name: &str| column_index(name).and_then(|column| text_of(&self.row, column)).unwrap_or_default().into_owned();
        let (alert_id, rule_id, rule_name) = (text("alert_id"), text("rule_id"), text("rule_name"));
        RaisedAlert { alert_id, rule_id, rule_name, passes: self.passes, conditions: self.conditions }
    }
}

/// None where a key column is null.
fn bucket_of(event: &SecurityEvent, columns: &[BucketColumn]) -> Option<String> {
    let mut bucket = String::new();
    let has_all = write_bucket(event, columns, &mut bucket);
    has_all.then_some(bucket)
}

/// The matches at the event's instant and after it, as far as they can have the event as evidence.
fn matches_from(
    rule: &Rule,
    plan: &RulePlan,
    sides: &Sides,
    event: &SecurityEvent,
    seen: &[Arc<SecurityEvent>],
) -> QueryResult<Vec<Match>> {
    let window_micros = rule.header.window_s * 1_000_000;
    let mut found = Vec::new();
    if plan.is_run_by_instant() {
        let instants: BTreeSet<Timestamp> = seen.iter().map(|other| other.ts).filter(|ts| *ts >= event.ts).collect();
        for instant in instants.into_iter().take(MOST_INSTANTS) {
            let oldest = instant.plus_micros(-window_micros);
            let slice = seen.iter().filter(|other| oldest <= other.ts && other.ts <= instant).cloned().collect();
            run(rule, plan, sides, slice, Some((event.tenant_id.clone(), instant)), &mut found)?;
        }
    } else if !seen.is_empty() {
        run(rule, plan, sides, seen.to_vec(), None, &mut found)?;
    }
    let mut found: Vec<Match> = found.into_iter().map(|one| one.found).filter(|one| one.instant >= event.ts).collect();
    found.sort_by_key(|one| (one.instant, one.first().ts, one.first().event_id));
    Ok(found)
}

fn run(
    rule: &Rule,
    plan: &RulePlan,
    sides: &Sides,
    rows: Vec<Arc<SecurityEvent>>,
    fixed: Option<(TenantId, Timestamp)>,
    found: &mut Vec<Found>,
) -> QueryResult<()> {
    let seen = Arc::new(EventBatch::new(rows).beside(sides));
    let batches = plan.run(Arc::clone(&seen))?;
    // The work of its row patterns counts anew for each run.
    let _given_up = plan.overruns();
    let back_micros = plan.back_micros(rule.header.window_s * 1_000_000);
    let reader = Reader::new(&rule.header.key, &plan.output, &plan.buckets, seen.rows().iter(), back_micros, fixed);
    for batch in &batches {
        let _unfounded = reader.read(batch, found)?;
    }
    Ok(())
}

/// The standing alert that a match raised or joined.
fn alert_of<'a>(found: &Match, standing: impl Iterator<Item = &'a Told>, suppress_s: Option<i64>) -> Option<JoinedAlert> {
    // An alert's last evidence is at the instant of the match that raised it.
    let joins = |told: &&Told| match suppress_s {
        Some(seconds) => told.last_ts <= found.instant && found.instant < told.last_ts.plus_seconds(seconds),
        None => begins_as(told, found),
    };
    let told = standing.filter(|told| told.key == found.key).filter(joins).max_by_key(|told| told.last_ts)?;
    let is_raised_by_it = told.last_ts == found.instant && begins_as(told, found);
    Some(JoinedAlert { alert_id: told.alert_id.clone(), start: told.last_ts, is_raised_by_it })
}

fn begins_as(told: &Told, found: &Match) -> bool {
    told.event_ids.first() == Some(&found.first().event_id)
}
