//! Streaming finds, all in all, what the operator finds at once: however rows come, whenever it is asked, saved and restored in between.

use std::any::Any;
use std::sync::Arc;

use aegis_match::{MatchExec, Recognizer, Streaming};
use datafusion::arrow::array::RecordBatch;

use crate::harness::{Row, Session, batch, letters, rows as written, sorted, texts};
use crate::laws::limits;
use crate::random::{Rng, query, rows};

/// The recognizer of a query that is one `MATCH_RECOGNIZE` over `t`, and what its input keeps of the table's columns.
pub(crate) fn recognizer(session: &Session, sql: &str) -> (Arc<Recognizer>, impl Fn(&RecordBatch) -> RecordBatch + use<>) {
    let mut plan = session.physical(sql).unwrap();
    let recognizer = loop {
        let any: &dyn Any = plan.as_ref();
        if let Some(exec) = any.downcast_ref::<MatchExec>() {
            break Arc::clone(exec.recognizer());
        }
        let below = Arc::clone(plan.children()[0]);
        plan = below;
    };
    let columns: Vec<String> = recognizer.input_schema().fields().iter().map(|field| field.name().clone()).collect();
    let select = move |batch: &RecordBatch| {
        let schema = batch.schema();
        let places: Vec<usize> = columns.iter().map(|name| schema.index_of(name).unwrap()).collect();
        batch.project(&places).unwrap()
    };
    (recognizer, select)
}

#[test]
fn a_match_comes_as_soon_as_nothing_can_change_it() {
    let session = Session::new(&[]);
    let found = |pattern: &str, measure: &str, text: &str| {
        let (recognizer, select) = recognizer(&session, &letters("", measure, "", pattern));
        let mut streaming = Streaming::new(recognizer, session.report.clone()).unwrap();
        let mut seen = Vec::new();
        for row in written(text) {
            streaming.push(&select(&batch(&[row]))).unwrap();
            seen.push(texts(&[streaming.find().unwrap()]).join(" "));
        }
        streaming.complete();
        seen.push(texts(&[streaming.find().unwrap()]).join(" "));
        seen
    };
    let ids = "array_agg(id) AS ids";
    assert_eq!(found("a b", ids, "p:a p:b p:c"), ["", "[p1, p2]", "", ""]);
    assert_eq!(found("a b+", ids, "p:a p:b p:b p:c"), ["", "", "", "[p1, p2, p3]", ""]);
    assert_eq!(found("a b+?", ids, "p:a p:b p:b p:c"), ["", "[p1, p2]", "", "", ""]);
    assert_eq!(found("a b+", ids, "p:a p:b p:b"), ["", "", "", "[p1, p2, p3]"]);
    assert_eq!(found("a b $", ids, "p:a p:b"), ["", "", "[p1, p2]"]);
    assert_eq!(found("a b", "NEXT(b.id) AS n", "p:a p:b p:a p:b"), ["", "", "p3", "", "-"], "a measure waits for its row");
    assert_eq!(
        found("a b", "PREV(a.id, 3) AS n", "p:c p:c p:c p:c p:a p:b"),
        ["", "", "", "", "", "p2", ""],
        "rows before are kept"
    );
}

#[test]
fn streaming_is_batch_in_pieces() {
    let (mut matches, mut early) = (0, 0);
    for seed in 0..350 {
        let mut rng = Rng(5_000 + seed);
        let (rows, query) = (rows(&mut rng, 16), query(&mut rng, true));
        let session = Session::over(vec![batch(&rows)], limits(&query));
        let sql = format!("SELECT * FROM {}", query.relation("PARTITION BY g"));
        let Ok(wanted) = session.query(&sql) else { continue };
        let (recognizer, select) = recognizer(&session, &sql);
        let mut streaming = Streaming::new(Arc::clone(&recognizer), session.report.clone()).unwrap();
        let mut found = Vec::new();
        let mut rest = rows.as_slice();
        while !rest.is_empty() {
            let (now, later) = rest.split_at(1 + rng.below(rest.len().min(4)));
            rest = later;
            streaming.push(&select(&batch(now))).unwrap();
            if rng.chance(40)
                && let Some(next) = rest.first()
            {
                streaming.advance((next.ts - rng.below(2) as i64) * 1_000_000);
            }
            if rng.chance(70) {
                found.extend(texts(&[streaming.find().unwrap()]));
            }
            if rng.chance(25) {
                let snapshot = streaming.snapshot().unwrap();
                streaming = Streaming::restore(Arc::clone(&recognizer), session.report.clone(), snapshot).unwrap();
            }
        }
        early += found.len();
        streaming.complete();
        found.extend(texts(&[streaming.find().unwrap()]));
        assert_eq!(streaming.find().unwrap().num_rows(), 0);
        matches += found.len();
        assert_eq!(sorted(found), sorted(wanted), "seed {seed}\n{sql}\n{rows:#?}");
        assert_eq!(session.report.take().count, 0, "seed {seed}");
    }
    assert!(matches > 700 && early > 300, "too little was compared: {matches} matches, {early} before the end");
}

#[test]
fn a_span_and_a_watermark_end_the_waiting() {
    let span = aegis_match::Limits { span_micros: Some(5_000_000), ..aegis_match::Limits::default() };
    let session = Session::over(vec![batch(&[])], span);
    let (recognizer, select) = recognizer(&session, &letters("PARTITION BY g", "array_agg(id) AS ids", "", "a+ b*"));
    let mut streaming = Streaming::new(recognizer, session.report.clone()).unwrap();
    streaming.push(&select(&batch(&written("p:a q:a p:a p:b q:b")))).unwrap();
    assert_eq!(streaming.find().unwrap().num_rows(), 0, "more rows may follow");
    streaming.advance(5_000_000);
    assert_eq!(streaming.find().unwrap().num_rows(), 0, "a row at 5 s would be in reach of the one at 0 s");
    streaming.advance(5_000_001);
    assert_eq!(texts(&[streaming.find().unwrap()]), ["p|[p1, p2, p3]"]);
    streaming.advance(6_000_001);
    assert_eq!(texts(&[streaming.find().unwrap()]), ["q|[q1, q2]"]);
    assert_eq!((streaming.kept_rows(), streaming.kept_partitions()), (0, 0), "nothing is kept of what is done");
}

#[test]
fn what_is_kept_does_not_grow_with_what_came() {
    let session = Session::new(&[]);
    let (recognizer, select) = recognizer(&session, &letters("PARTITION BY g", "PREV(a.id) AS before", "", "a b"));
    let mut streaming = Streaming::new(recognizer, session.report.clone()).unwrap();
    let mut found = 0;
    for place in 0..2_000 {
        let letter = ["c", "c", "a", "b"][place % 4];
        let row = Row { g: Some("p".into()), ts: place as i64, x: None, k: letter.into(), id: place.to_string() };
        streaming.push(&select(&batch(&[row]))).unwrap();
        found += streaming.find().unwrap().num_rows();
        assert!(streaming.kept_rows() < 20, "{} rows are kept", streaming.kept_rows());
    }
    assert_eq!(found, 500);
}
