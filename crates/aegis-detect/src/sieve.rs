//! What rules do not look at is left out of rows before events are made of them: asked of the rules' own filters, column by column.
//! Promises that a row is left out only where it changes nothing that any of the rules tells: it proved itself, was in time, and passes no rule's
//! filter. Where most rows stay, nobody is asked any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use datafusion::arrow::array::{Array, AsArray, BooleanArray, RecordBatch, RecordBatchOptions};
use datafusion::arrow::compute::filter_record_batch;
use datafusion::error::{DataFusionError, Result};

use crate::plan::{Filter, RulePlan};
use crate::ruleset::RuleSet;

/// After so many rows it is known how many stay.
const ROWS_TO_KNOW: u64 = 16_384;

/// The filters of some rules. None: each row may matter.
#[derive(Debug)]
pub struct Sieve {
    filters: Option<Vec<Filter>>,
    asked: AtomicU64,
    left_out: AtomicU64,
}

impl Sieve {
    /// For all rules of these sets together.
    #[must_use]
    pub fn of(sets: &[RuleSet]) -> Self {
        // What a side table says rests on events of any kind.
        let all_filter = !sets.iter().any(RuleSet::reads_sides);
        let filters = all_filter.then(|| sets.iter().flat_map(RuleSet::filters).collect::<Option<Vec<Filter>>>());
        Self { filters: filters.flatten(), asked: AtomicU64::new(0), left_out: AtomicU64::new(0) }
    }

    /// For some rules that read events alone, and no side table.
    pub(crate) fn of_plans<'a>(plans: impl Iterator<Item = &'a RulePlan>) -> Self {
        Self { filters: plans.map(RulePlan::filter).collect(), asked: AtomicU64::new(0), left_out: AtomicU64::new(0) }
    }

    /// The rows without those that no rule looks at.
    #[must_use]
    pub fn sift(&self, rows: RecordBatch) -> RecordBatch {
        let Some(filters) = &self.filters else { return rows };
        let (asked, left_out) = (self.asked.load(Ordering::Relaxed), self.left_out.load(Ordering::Relaxed));
        if asked >= ROWS_TO_KNOW && left_out < asked / 2 {
            return rows;
        }
        // Where a filter fails, the engine shows whose event it is.
        let Ok(kept) = staying(filters, &rows).and_then(|mask| Ok(filter_record_batch(&rows, &mask)?)) else { return rows };
        self.asked.fetch_add(rows.num_rows() as u64, Ordering::Relaxed);
        self.left_out.fetch_add((rows.num_rows() - kept.num_rows()) as u64, Ordering::Relaxed);
        kept
    }

    /// How many rows were left out.
    #[must_use]
    pub fn left_out(&self) -> u64 {
        self.left_out.load(Ordering::Relaxed)
    }
}

/// Which of the rows stay.
fn staying(filters: &[Filter], rows: &RecordBatch) -> Result<BooleanArray> {
    let count = rows.num_rows();
    let mut stays: Vec<bool> = vec![false; count];
    let (verified, late) = (flags(rows, "verified")?, flags(rows, "late")?);
    for (row, stay) in stays.iter_mut().enumerate() {
        *stay = !(is_true(verified, row) && late.is_valid(row) && !late.value(row));
    }
    for filter in filters {
        let columns = filter.schema.fields().iter().map(|field| {
            rows.column_by_name(field.name()).cloned().ok_or_else(|| DataFusionError::Internal(format!("no {}", field.name())))
        });
        let options = RecordBatchOptions::new().with_row_count(Some(count));
        let columns = columns.collect::<Result<Vec<_>>>()?;
        let input = RecordBatch::try_new_with_options(Arc::clone(&filter.schema), columns, &options)?;
        let answers = filter.expr.evaluate(&input)?.into_array(count)?;
        let passes = answers.as_boolean();
        for (row, stay) in stays.iter_mut().enumerate() {
            *stay |= is_true(passes, row);
        }
    }
    Ok(BooleanArray::from(stays))
}

fn is_true(flags: &BooleanArray, row: usize) -> bool {
    flags.is_valid(row) && flags.value(row)
}

fn flags<'a>(rows: &'a RecordBatch, name: &str) -> Result<&'a BooleanArray> {
    let column = rows.column_by_name(name).and_then(|column| column.as_boolean_opt());
    column.ok_or_else(|| DataFusionError::Internal(format!("no {name}")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use aegis_model::{Decision, EventKind, SecurityEvent, TenantId, Timestamp};

    use super::*;
    use crate::rows::events_of;
    use crate::schema::EventBatch;

    fn rule(id: &str, query: &str) -> RuleSet {
        RuleSet::from_texts([text(id, query)]).unwrap()
    }

    fn text(id: &str, query: &str) -> (std::path::PathBuf, String) {
        let text = format!(
            "/* rule\nid: {id}\nname: {}\nversion: 1\nseverity: low\nwindow: 60s\nkey: [agent_id]\nmode: active\nrequires: any\nowner: soc\n\
             description: d\nfalse_positives: none\nchangelog:\n  - {{version: 1, date: 2026-11-22, note: n}}\n*/\n{query}\n",
            id.to_lowercase()
        );
        (format!("{id}/rule.sql").into(), text)
    }

    fn denies() -> RuleSet {
        rule("T-1", "SELECT agent_id, event_id FROM events WHERE decision = 'deny'")
    }

    /// Of ten one is denied, one was late, one is not proved; all others are allowed.
    fn events(count: i64) -> Vec<Arc<SecurityEvent>> {
        let event = |n: i64| {
            let (tenant, ts) = (TenantId::new("t").unwrap(), Timestamp::from_micros(n));
            let mut event = SecurityEvent::new(tenant, "e", "edge", EventKind::AuthorizeDecision, ts);
            (event.verified, event.late) = (n % 10 != 2, n % 10 == 1);
            event.decision = Some(if n % 10 == 0 { Decision::Deny } else { Decision::Allow });
            Arc::new(event)
        };
        (0..count).map(event).collect()
    }

    fn sifted(sieve: &Sieve, events: &[Arc<SecurityEvent>]) -> Vec<Arc<SecurityEvent>> {
        events_of(&sieve.sift(EventBatch::new(events.to_vec()).to_record_batch().unwrap())).unwrap()
    }

    #[test]
    fn what_no_rule_looks_at_is_left_out_and_nothing_else() {
        let (all, sieve) = (events(50), Sieve::of(&[denies()]));
        let stay: Vec<Arc<SecurityEvent>> = all.iter().filter(|event| event.ts.as_micros() % 10 < 3).cloned().collect();
        assert_eq!(sifted(&sieve, &all), stay);
        assert_eq!(sieve.left_out(), 35);
        let allows = || rule("T-2", "SELECT agent_id, event_id FROM events WHERE decision = 'allow'");
        assert_eq!(sifted(&Sieve::of(&[denies(), allows()]), &all), all, "one of the two looks at it");
    }

    #[test]
    fn a_rule_on_rules_keeps_no_event() {
        let denies = text("T-1", "SELECT agent_id, event_id FROM events WHERE decision = 'deny'");
        let on_it = text("T-6", "SELECT agent_id, event_id FROM alerts WHERE rule_name = 't-1'");
        let (all, both) = (events(50), RuleSet::from_texts([denies, on_it]).unwrap());
        let sieve = Sieve::of(&[both]);
        assert!(sifted(&sieve, &all).len() < all.len());
        assert_eq!(sieve.left_out(), 35);
    }

    #[test]
    fn where_any_event_may_matter_all_stay() {
        let all = events(50);
        let any = rule("T-3", "SELECT agent_id, event_id FROM events");
        let side = rule("T-4", "SELECT agent_id, event_id FROM events WHERE decision = 'deny' AND first_seen_agent = ts");
        for set in [any, side] {
            let sieve = Sieve::of(&[denies(), set]);
            assert_eq!(sifted(&sieve, &all), all);
            assert_eq!(sieve.left_out(), 0);
        }
    }

    #[test]
    fn where_most_rows_stay_nobody_is_asked_any_more() {
        let few_pass = rule("T-5", "SELECT agent_id, event_id FROM events WHERE decision = 'allow'");
        let (all, sieve) = (events(2 * ROWS_TO_KNOW as i64), Sieve::of(&[few_pass]));
        let (first, second) = all.split_at(all.len() / 2);
        assert!(sifted(&sieve, first).len() < first.len());
        assert_eq!(sifted(&sieve, second), second);
    }
}
