//! Law L-BODY: the body that is read back is the one that was hashed, byte for byte, though the row keeps only what its event does not say;
//! and a row that does not give it is told, wherever it is read, and hides no other.

use crate::fixture::*;
use aegis_ledger::verify::{ExportVerdict, FailureCode, verify_export};
use aegis_ledger::{Draft, Durability, ExportLine, Ledger, LedgerError, LedgerReader, OutboxItem};
use aegis_model::{Clock, EventKind, Phase, TenantId, Timestamp, WireEvent};
use proptest::prelude::*;
use serde_json::{Value, json};
use sqlx::Connection;

/// Details that a row keeps, and details that it could not read again, with which it keeps the whole body.
fn details() -> [(Option<Value>, bool); 8] {
    [
        (None, false),
        (Some(Value::Null), false),
        (Some(json!({"b": [1, {"a": "“é”\n\u{1}\u{7f}"}], "a": null})), false),
        (Some(json!({"action": "one that looks like a body's first"})), false),
        (Some(json!("a text")), false),
        (Some(json!({"fraction": 0.5})), true),
        (Some(json!({"large": 1e30})), true),
        (Some(json!({"é": 1})), true),
    ]
}

/// A draft of each kind, and of each phase that is not of the lane itself, with all of those details, with and without what is committed to.
fn drafts(owner: &TenantId) -> Vec<(Draft, bool)> {
    let phases: Vec<&str> = Phase::WORDS.iter().copied().filter(|word| !matches!(*word, "open" | "close")).collect();
    let mut drafts = Vec::new();
    for (place, kind) in EventKind::WORDS.iter().enumerate() {
        for (turn, (detail, is_whole)) in details().into_iter().enumerate() {
            let mut draft = draft_now(owner);
            draft.event.kind = kind.parse().unwrap();
            draft.phase = phases[(place + turn) % phases.len()].parse().unwrap();
            draft.detail = detail;
            draft.input = turn.is_multiple_of(2).then(|| b"in".to_vec());
            draft.output = turn.is_multiple_of(3).then(|| b"out".to_vec());
            draft.executed_hash = (turn == 3).then(|| "what a caller \"says\"\\".to_owned());
            if turn == 4 {
                draft.frozen = Some(Box::new(frozen(&draft, draft.event.ts.plus_seconds(900))));
            }
            drafts.push((draft, is_whole));
        }
    }
    drafts
}

#[tokio::test]
async fn what_comes_back_from_the_disk_is_what_was_handed_out_when_it_was_sealed() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = open(folder.path()).await;
    let mut ring = ledger.take_sealed_receiver().unwrap();
    let acme = tenant("acme");
    let drafts = drafts(&acme);
    let whole = drafts.iter().filter(|(_, is_whole)| *is_whole).count();
    let pending: Vec<_> =
        drafts.iter().map(|(draft, _)| ledger.try_submit(draft.clone(), Durability::Required).unwrap()).collect();
    for receipt in pending {
        receipt.await.unwrap();
    }
    let mut handed_out = Vec::new();
    // The lane's `open` is one more.
    for _ in 0..=drafts.len() {
        handed_out.push(ring.recv().await.unwrap());
    }
    let read = everything(&ledger).await;
    assert_all_verify(&read);
    let plain = |items: &[OutboxItem]| -> Vec<_> {
        items.iter().map(|item| (item.row, item.sealed.clone(), item.frozen.clone())).collect()
    };
    assert_eq!(plain(&read), plain(&handed_out));
    // L-READ-ONCE: what is handed on beside a text is what the text says.
    let handed_on: Vec<_> = handed_out.iter().filter_map(|item| Some((item, item.event.as_deref()?))).collect();
    assert_eq!(handed_on.len(), drafts.len());
    for (item, event) in handed_on {
        assert_eq!(&WireEvent::read(item.sealed.wire.as_bytes()).unwrap().event().unwrap(), event);
    }
    assert!(read.iter().all(|item| item.event.is_none()));
    let wires: Vec<&str> = read.iter().map(|item| item.sealed.wire.as_str()).collect();
    assert_eq!(texts(&ledger.export(&acme, 0, 1000).await.unwrap()), wires);
    for item in &read {
        assert_eq!(ledger.receipt(&acme, item.sealed.event_id).await.unwrap().unwrap(), item.sealed);
    }
    let mut beside = second_connection(folder.path()).await;
    let (stored, bodies): (i64, i64) =
        sqlx::query_as("SELECT count(*), count(*) FILTER (WHERE receipt LIKE '{\"action\":%') FROM receipts")
            .fetch_one(&mut beside)
            .await
            .unwrap();
    assert_eq!((stored as usize, bodies as usize), (read.len(), whole), "no body is stored that can be made again");
}

fn texts(lines: &[ExportLine]) -> Vec<&str> {
    assert!(lines.iter().all(|line| line.is_sealed));
    lines.iter().map(|line| line.text.as_str()).collect()
}

/// Ways in which a row can be changed on the disk.
const CHANGES: [&str; 7] = [
    "event = replace(event, '\"deny\"', '\"denY\"')",
    "event = replace(event, 'triage-bot', 'triage-bat')",
    "receipt = replace(receipt, 'decision', 'outcome')",
    "receipt = substr(receipt, 2)",
    "receipt = ''",
    "receipt_hash = replace(hex(zeroblob(32)), '00', '0a')",
    "prev_hash = replace(hex(zeroblob(32)), '00', '0a')",
];

#[tokio::test]
async fn a_row_that_was_changed_in_the_middle_is_told_wherever_it_is_read_and_hides_no_other() {
    for change in CHANGES {
        let folder = tempfile::tempdir().unwrap();
        let ledger = open(folder.path()).await;
        let acme = tenant("acme");
        for _ in 0..8 {
            ledger.submit(draft_now(&acme)).await.unwrap();
        }
        let before = everything(&ledger).await;
        let victim = &before[4];
        let mut beside = second_connection(folder.path()).await;
        let sql = format!("UPDATE receipts SET {change} WHERE row = {}", victim.row);
        assert_eq!(sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut beside).await.unwrap().rows_affected(), 1);
        beside.close().await.unwrap();

        let rest: Vec<i64> = before.iter().map(|item| item.row).filter(|row| *row != victim.row).collect();
        let read: Vec<i64> = everything(&ledger).await.iter().map(|item| item.row).collect();
        assert_eq!(read, rest, "{change}: it is not shipped as what it is not");
        let asked = ledger.receipt(&acme, victim.sealed.event_id).await;
        assert!(matches!(asked, Err(LedgerError::Read(_))), "{change}: {asked:?}");
        let remembered = ledger.recent(Timestamp::from_micros(0), &[EventKind::AuthorizeDecision], 0, 100).await.unwrap();
        assert_eq!(remembered.len(), 8, "{change}");
        // Whatever can be made of its receipt, a start takes the label from its event.
        let said = parse(&remembered.iter().find(|item| item.row == victim.row).unwrap().sealed.wire);
        assert_eq!(said["source_trust"], parse(&victim.sealed.wire)["source_trust"], "{change}");
        assert!(said["source_trust"].is_string());

        let reader = LedgerReader::open(&folder.path().join("ledger.db")).await.unwrap();
        let lines = reader.export(&acme, 0, 100).await.unwrap();
        assert_eq!(lines, ledger.export(&acme, 0, 100).await.unwrap());
        assert_eq!(lines.iter().map(|line| line.row).collect::<Vec<_>>(), before.iter().map(|item| item.row).collect::<Vec<_>>());
        for (line, item) in lines.iter().zip(&before) {
            assert_eq!(line.is_sealed, item.row != victim.row);
            assert!(!line.is_sealed || line.text == item.sealed.wire);
        }
        assert_eq!(parse(&lines[4].text)["evidence"], "damaged");
        let export: String = lines.iter().map(|line| format!("{}\n", line.text)).collect();
        for pinned in [None, Some(&ring())] {
            let report = verify_export(export.as_bytes(), pinned).unwrap();
            assert_eq!(report.verdict, ExportVerdict::Invalid);
            let failure = report.failure.unwrap().failure;
            assert_eq!((failure.code, failure.seq), (FailureCode::HashMismatch, Some(victim.sealed.seq)), "{change}");
            assert_eq!(failure.lane.as_deref(), Some(victim.sealed.lane.as_str()));
        }
    }
}

#[tokio::test]
async fn a_detail_that_is_sealed_can_be_read_inside_its_event_however_deep_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = open(folder.path()).await;
    let acme = tenant("acme");
    let nested = |depth: usize| {
        (0..depth).fold(json!("[{"), |inner, level| if level % 2 == 0 { json!([inner]) } else { json!({"é": inner}) })
    };
    for depth in [1, 63, 64] {
        let mut draft = draft_now(&acme);
        draft.detail = Some(nested(depth));
        ledger.submit(draft).await.unwrap();
    }
    for depth in [65, 126, 128, 200] {
        let mut draft = draft_now(&acme);
        draft.detail = Some(nested(depth));
        let refused = ledger.submit(draft).await.unwrap_err();
        assert!(matches!(refused, LedgerError::Rejected(_)), "{depth}: {refused}");
    }
    let items = everything(&ledger).await;
    assert_eq!(items.len(), 4);
    assert_all_verify(&items);
}

#[tokio::test]
async fn a_row_that_has_its_body_whole_is_held_against_the_rest_of_it_too() {
    for change in ["event = replace(event, '\"deny\"', '\"denY\"')", "prev_hash = replace(hex(zeroblob(32)), '00', '0a')"] {
        let folder = tempfile::tempdir().unwrap();
        let ledger = open(folder.path()).await;
        let acme = tenant("acme");
        for _ in 0..3 {
            let mut draft = draft_now(&acme);
            draft.detail = Some(json!({"fraction": 0.5}));
            ledger.submit(draft).await.unwrap();
        }
        let before = everything(&ledger).await;
        let victim = &before[2];
        let mut beside = second_connection(folder.path()).await;
        let sql = format!("UPDATE receipts SET {change} WHERE row = {} AND receipt LIKE '{{\"action\":%'", victim.row);
        assert_eq!(sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut beside).await.unwrap().rows_affected(), 1);
        beside.close().await.unwrap();

        let read: Vec<i64> = everything(&ledger).await.iter().map(|item| item.row).collect();
        let rest: Vec<i64> = before.iter().map(|item| item.row).filter(|row| *row != victim.row).collect();
        assert_eq!(read, rest, "{change}: it is not shipped as what it is not");
        let asked = ledger.receipt(&acme, victim.sealed.event_id).await;
        assert!(matches!(asked, Err(LedgerError::Read(_))), "{change}: {asked:?}");
        let lines = ledger.export(&acme, 0, 100).await.unwrap();
        for (line, item) in lines.iter().zip(&before) {
            assert_eq!(line.is_sealed, item.row != victim.row, "{change}");
        }
        assert_eq!((lines.len(), &parse(&lines[2].text)["evidence"]), (before.len(), &json!("damaged")));
    }
}

#[tokio::test]
async fn rows_of_which_nothing_can_be_made_are_not_the_end_of_what_a_start_reads_back() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = open(folder.path()).await;
    let acme = tenant("acme");
    for _ in 0..6 {
        ledger.submit(draft_now(&acme)).await.unwrap();
    }
    let rows: Vec<i64> = everything(&ledger).await.iter().skip(1).map(|item| item.row).collect();
    let mut beside = second_connection(folder.path()).await;
    let spoil = "UPDATE receipts SET leaf = -1 WHERE row BETWEEN ? AND ?";
    let spoilt = sqlx::query(spoil).bind(rows[1]).bind(rows[4]).execute(&mut beside).await.unwrap();
    assert_eq!(spoilt.rows_affected(), 4);
    beside.close().await.unwrap();
    let mut read = Vec::new();
    loop {
        let after = read.last().copied().unwrap_or(0);
        let page = ledger.recent(Timestamp::from_micros(0), &[EventKind::AuthorizeDecision], after, 2).await.unwrap();
        if page.is_empty() {
            break;
        }
        read.extend(page.iter().map(|item| item.row));
    }
    assert_eq!(read, [rows[0], rows[5]]);
}

/// One step of the life of a ledger, as far as it moves rows, lanes and what is left of them.
#[derive(Clone, Debug)]
enum Step {
    Submit { tenant: usize, count: usize },
    CleanRestart,
    UncleanRestart,
    SetBack,
    Prune { through: i64 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..3usize, 1..9usize).prop_map(|(tenant, count)| Step::Submit { tenant, count }),
        1 => Just(Step::CleanRestart),
        1 => Just(Step::UncleanRestart),
        1 => Just(Step::SetBack),
        1 => (1..9i64).prop_map(|through| Step::Prune { through }),
    ]
}

async fn exported_like_the_rest(steps: Vec<Step>) {
    let folder = tempfile::tempdir().unwrap();
    let clock = manual_clock();
    let start = || Ledger::open(config(folder.path()), key(), clock.clone());
    let mut ledger = start().await.unwrap();
    for step in steps {
        clock.advance_seconds(10);
        match step {
            Step::Submit { tenant: number, count } => {
                for _ in 0..count {
                    let owner = tenant(&format!("tenant-{number}"));
                    ledger.submit(draft(&owner, clock.now())).await.unwrap();
                }
            }
            Step::CleanRestart | Step::UncleanRestart => {
                if matches!(step, Step::CleanRestart) {
                    ledger.close().await.unwrap();
                }
                crash(ledger, folder.path()).await;
                ledger = start().await.unwrap();
            }
            Step::SetBack => clock.advance_seconds(-60),
            Step::Prune { through } => {
                ledger.mark_shipped(ledger.last_row()).await;
                let late = Timestamp::from_micros(i64::MAX);
                for lane in ledger.old_lanes(late, "", 100).await.unwrap() {
                    ledger.prune_confirmed(&lane, through, late).await.unwrap();
                }
            }
        }
    }
    let items = everything(&ledger).await;
    for owner in ["tenant-0", "tenant-1", "tenant-2", "nobody"].map(tenant) {
        let own: Vec<(i64, &str)> = items
            .iter()
            .filter(|item| item.sealed.tenant_id == owner)
            .map(|item| (item.row, item.sealed.wire.as_str()))
            .collect();
        for after in -1..=ledger.last_row() + 1 {
            let behind: Vec<(i64, &str)> = own.iter().copied().filter(|(row, _)| *row > after).collect();
            for limit in [1, 4, 1000] {
                let lines = ledger.export(&owner, after, limit).await.unwrap();
                let read: Vec<(i64, &str)> = lines.iter().map(|line| (line.row, line.text.as_str())).collect();
                assert_eq!(read, behind[..limit.min(behind.len())], "{owner} after {after}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, ..ProptestConfig::default() })]

    /// From wherever an export goes on, it has the tenant's rows behind that, in their order, whatever became of lanes and rows.
    #[test]
    fn an_export_has_the_tenant_s_rows_from_any_place_on(steps in prop::collection::vec(step(), 1..14)) {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
            .block_on(exported_like_the_rest(steps));
    }
}
