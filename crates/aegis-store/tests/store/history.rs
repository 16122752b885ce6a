//! The log of events: idempotent, filtered, exported in order.

use aegis_model::{Decision, EventKind, LaneReach, external_event_id};
use aegis_store::{HistoryFilter, HistoryRow, LanePlace, Standing, StoreError};

use crate::fixtures::*;

fn seqs(rows: &[HistoryRow]) -> Vec<i64> {
    rows.iter().filter_map(|row| row.seq).collect()
}

#[tokio::test]
async fn a_batch_that_overlaps_an_earlier_one_adds_only_what_is_new() {
    let mut place = Place::new().await;
    let rows: Vec<_> = (1..=1024).map(|seq| event(&acme(), EventKind::AuthorizeDecision, seq)).collect();
    assert_eq!(place.store.insert_history(&rows[..600], &[]).await.unwrap(), 600);
    assert_eq!(place.store.insert_history(&rows[400..], &[]).await.unwrap(), 424);
    place.reopen().await;
    assert_eq!(place.store.history_event(&acme(), rows[7].event_id).await.unwrap().as_ref(), Some(&rows[7]));
    assert_eq!(exported(&place, 100).await, rows);
}

/// All receipts of acme, page by page.
async fn exported(place: &Place, page: u32) -> Vec<HistoryRow> {
    let (mut after, mut rows): (Option<LanePlace>, Vec<HistoryRow>) = (None, Vec::new());
    for _ in 0..10_000 {
        let found = place.store.export_lanes(&acme(), after.as_ref(), page).await.unwrap();
        let Some((last, _)) = found.last() else { return rows };
        after = Some(last.clone());
        rows.extend(found.into_iter().map(|(_, row)| row));
    }
    panic!("an export that does not end");
}

#[tokio::test]
async fn listing_filters_and_puts_the_newest_first() {
    let place = Place::new().await;
    let mut rows = vec![
        event(&acme(), EventKind::AuthorizeDecision, 1),
        event(&acme(), EventKind::ToolOutcome, 2),
        event(&acme(), EventKind::ExternalGithubWebhook, 3),
        event(&acme(), EventKind::AuthorizeDecision, 4),
    ];
    rows[3].agent_id = Some("agent-2".into());
    rows[3].run_id = None;
    place.store.insert_history(&rows, &[]).await.unwrap();
    let list = async |filter: HistoryFilter<'_>| place.store.list_history(&acme(), filter, 10, 0).await.unwrap();
    let all = list(HistoryFilter::default()).await;
    assert_eq!(all, rows.iter().rev().cloned().collect::<Vec<_>>());
    assert_eq!(all[0].decision, Some(Decision::Deny));
    assert_eq!(seqs(&list(HistoryFilter { receipts_only: true, ..Default::default() }).await), [4, 2, 1]);
    let kinds = [EventKind::AuthorizeDecision, EventKind::ExternalGithubWebhook];
    assert_eq!(list(HistoryFilter { kinds: &kinds, ..Default::default() }).await.len(), 3);
    assert_eq!(seqs(&list(HistoryFilter { agent_id: Some("agent-2"), ..Default::default() }).await), [4]);
    assert_eq!(seqs(&list(HistoryFilter { run_id: Some("run-1"), receipts_only: true, ..Default::default() }).await), [2, 1]);
    assert_eq!(seqs(&place.store.list_history(&acme(), HistoryFilter::default(), 1, 2).await.unwrap()), [2]);
}

#[tokio::test]
async fn lanes_are_exported_one_after_the_other_in_order_of_seq() {
    let place = Place::new().await;
    let mut rows: Vec<_> = [3, 1, 2, 4].into_iter().map(|seq| event(&acme(), EventKind::ToolAttempt, seq)).collect();
    rows[3].lane = Some("acme.edge-0.1".into());
    place.store.insert_history(&rows, &[]).await.unwrap();
    assert_eq!(seqs(&exported(&place, 1).await), [4, 1, 2, 3]);
}

#[tokio::test]
async fn what_others_put_under_a_receipt_s_place_takes_none_out_of_an_export_and_lets_it_end() {
    let place = Place::new().await;
    let real: Vec<_> = (1..=3).map(|seq| event(&acme(), EventKind::ToolAttempt, seq)).collect();
    let forged: Vec<_> = (1..=5).map(|n| claim(2, &hash(n))).collect();
    let batches: [&[HistoryRow]; 2] = [&forged, &real];
    for rows in batches {
        place.store.insert_history(rows, &[]).await.unwrap();
    }
    // The second of them named the receipt's hash, and gave way to it.
    let expected: Vec<_> = [&real[..1], &forged[..1], &real[1..2], &forged[2..], &real[2..]].concat();
    for page in [1, 2, 100] {
        assert_eq!(exported(&place, page).await, expected);
    }
}

/// What proves nothing, and says that it is a receipt of the lane of all `event`s.
fn claim(seq: i64, hash: &str) -> HistoryRow {
    let receipt_hash = Some(hash.to_owned());
    HistoryRow { standing: Standing::Unproved, receipt_hash, ..event(&acme(), EventKind::ToolAttempt, seq) }
}

#[tokio::test]
async fn an_event_has_a_lane_and_a_place_in_it_or_neither() {
    let place = Place::new().await;
    let whole = event(&acme(), EventKind::ToolAttempt, 1);
    for torn in [HistoryRow { seq: None, ..whole.clone() }, HistoryRow { lane: None, ..whole.clone() }] {
        let refused = place.store.insert_history(&[whole.clone(), torn], &[]).await;
        assert!(matches!(refused, Err(StoreError::Invalid { .. })), "{refused:?}");
    }
    assert!(place.store.history_is_empty().await.unwrap(), "all of a batch or none");
}

#[tokio::test]
async fn lanes_are_known_by_the_first_proved_receipt_of_a_time_or_later() {
    let place = Place::new().await;
    let mut rows: Vec<_> = (1..=4).map(|seq| event(&acme(), EventKind::ToolAttempt, seq)).collect();
    let start = rows[0].ts;
    rows.iter_mut().zip([0, 10, 20, 30]).for_each(|(row, second)| row.ts = start.plus_seconds(second));
    // What proves nothing says of no lane that it has something.
    (rows[1].standing, rows[3].lane) = (Standing::Unproved, Some("acme.edge-0.1".into()));
    place.store.insert_history(&rows, &[]).await.unwrap();
    let lane = rows[2].lane.clone().unwrap();
    let since = async |second: i64| {
        let mut lanes = place.store.lanes_since(&acme(), start.plus_seconds(second)).await.unwrap();
        lanes.sort();
        lanes
    };
    let other = ("acme.edge-0.1".to_owned(), 4);
    assert_eq!(since(0).await, [other.clone(), (lane.clone(), 1)]);
    assert_eq!(since(1).await, [other.clone(), (lane, 3)]);
    assert_eq!(since(21).await, [other]);
    assert!(since(31).await.is_empty());
}

#[tokio::test]
async fn a_lane_s_proved_receipts_are_read_past_any_number_of_others_under_their_seq() {
    let place = Place::new().await;
    let real: Vec<_> = (1..=5).map(|seq| event(&acme(), EventKind::ToolAttempt, seq)).collect();
    let lane = real[0].lane.clone().unwrap();
    let forged: Vec<_> = (10..310).map(|n| claim(3, &hash(n))).collect();
    let other = HistoryRow { lane: Some("acme.edge-1.8".into()), ..event(&acme(), EventKind::ToolAttempt, 4) };
    let batches: [&[HistoryRow]; 3] = [&forged, &real, &[other]];
    for rows in batches {
        place.store.insert_history(rows, &[]).await.unwrap();
    }
    let (mut after, mut read) = (0, Vec::new());
    loop {
        let page = place.store.proved_of_lane(&acme(), &lane, after, 2).await.unwrap();
        let Some(last) = page.last() else { break };
        after = last.seq.unwrap();
        read.extend(page);
    }
    assert_eq!(read, real);
}

#[tokio::test]
async fn how_far_a_lane_is_stands_with_its_rows_and_outlives_the_process() {
    let mut place = Place::new().await;
    let lane = |name: &str, head, missing: &[(i64, i64)]| LaneReach {
        tenant_id: acme(),
        lane: name.into(),
        head,
        missing: missing.to_vec(),
    };
    let row = event(&acme(), EventKind::ToolAttempt, 7);
    assert_eq!(place.store.history_lane(&acme(), "a").await.unwrap(), None);
    place.store.insert_history(&[row], &[lane("a", 7, &[(1, 3), (5, 6)]), lane("b", 2, &[])]).await.unwrap();
    place.reopen().await;
    assert_eq!(place.store.history_lane(&acme(), "a").await.unwrap(), Some(lane("a", 7, &[(1, 3), (5, 6)])));
    assert_eq!(place.store.lanes_with_gaps().await.unwrap(), [lane("a", 7, &[(1, 3), (5, 6)])]);
    // Of each tenant in turn: many lanes of one do not come before another's only one.
    let zoe = tenant("zoe");
    place.store.create_tenant(&zoe, "Zoe").await.unwrap();
    let of_zoe = LaneReach { tenant_id: zoe, ..lane("z", 3, &[(1, 2)]) };
    place.store.insert_history(&[], &[lane("c", 3, &[(1, 1)]), of_zoe.clone()]).await.unwrap();
    let in_turn = [lane("a", 7, &[(1, 3), (5, 6)]), of_zoe.clone(), lane("c", 3, &[(1, 1)])];
    assert_eq!(place.store.lanes_with_gaps().await.unwrap(), in_turn);
    let filled = LaneReach { missing: Vec::new(), ..of_zoe };
    place.store.insert_history(&[], &[lane("c", 3, &[]), filled]).await.unwrap();
    // Also without a row: one that was there already filled the last gap.
    place.store.insert_history(&[], &[lane("a", 7, &[])]).await.unwrap();
    assert_eq!(place.store.lanes_with_gaps().await.unwrap(), []);
    assert_eq!(place.store.history_lane(&acme(), "b").await.unwrap(), Some(lane("b", 2, &[])));
}

#[tokio::test]
async fn what_proves_nothing_gives_way_to_the_receipt_whose_place_and_hash_it_claimed() {
    let place = Place::new().await;
    let real = event(&acme(), EventKind::AuthorizeDecision, 4);
    let claimed = HistoryRow { event_id: real.event_id, ..claim(4, real.receipt_hash.as_deref().unwrap()) };
    let elsewhere = HistoryRow { event_id: real.event_id, ..claim(9, real.receipt_hash.as_deref().unwrap()) };
    let all = async || place.store.history_events(&acme(), real.event_id, None).await.unwrap();
    // Also where both come in one batch, before the receipt, behind it and again.
    let rows = [claimed.clone(), elsewhere.clone(), real.clone(), claimed.clone()];
    for batch in [&rows[..1], &rows[1..], &rows[..], &rows[3..]] {
        place.store.insert_history(batch, &[]).await.unwrap();
    }
    assert_eq!(all().await, [real.clone(), elsewhere], "what claims another place is seen, behind it");
    assert_eq!(place.store.insert_history(&[claimed], &[]).await.unwrap(), 0);
    assert_eq!(place.store.history_event(&acme(), real.event_id).await.unwrap(), Some(real));
}

/// Ids of webhooks can be computed: whoever may publish for the tenant can put something under one before it comes, and behind it.
#[tokio::test]
async fn an_observation_is_kept_whatever_has_its_id() {
    let seen = HistoryRow {
        event_id: external_event_id(&acme(), "github", "delivery-1"),
        ..event(&acme(), EventKind::ExternalGithubWebhook, 3)
    };
    let sealed = HistoryRow { event_id: seen.event_id, ..event(&acme(), EventKind::AuthorizeDecision, 6) };
    let claimed = HistoryRow { event_id: seen.event_id, ..claim(7, "ab") };
    for order in [[&seen, &sealed, &claimed], [&claimed, &sealed, &seen], [&sealed, &seen, &claimed]] {
        let place = Place::new().await;
        for row in order.into_iter().chain(order) {
            place.store.insert_history(std::slice::from_ref(row), &[]).await.unwrap();
        }
        let found = place.store.history_events(&acme(), seen.event_id, None).await.unwrap();
        assert_eq!(found, [seen.clone(), sealed.clone(), claimed.clone()]);
    }
}

/// Who has the key of another edge of the tenant, and learns ids before the receipts arrive, seals something under each in its own lane.
#[tokio::test]
async fn no_receipt_is_kept_out_of_its_lane_by_who_took_its_id() {
    let place = Place::new().await;
    let real: Vec<_> = (1..=600).map(|seq| event(&acme(), EventKind::AuthorizeDecision, seq)).collect();
    let lane_of_thief = "acme.edge-2.1";
    let steal = |row: &HistoryRow| HistoryRow {
        lane: Some(lane_of_thief.into()),
        receipt_hash: Some(hash(row.seq.unwrap() + 1000)),
        ..row.clone()
    };
    let stolen: Vec<_> = real.iter().map(steal).collect();
    let lane = LaneReach { head: 600, ..LaneReach::none(acme(), "acme.edge-1.7".into()) };
    assert_eq!(place.store.insert_history(&stolen, &[]).await.unwrap(), 600);
    assert_eq!(place.store.insert_history(&real, std::slice::from_ref(&lane)).await.unwrap(), 600);
    assert_eq!(place.store.insert_history(&real, &[]).await.unwrap(), 0);
    assert_eq!(place.store.history_lane(&acme(), "acme.edge-1.7").await.unwrap(), Some(lane));
    assert_eq!(place.store.proved_of_lane(&acme(), "acme.edge-1.7", 0, 1000).await.unwrap(), real);
    // Both are there, in the order in which they came, and each is found by its lane.
    let id = real[6].event_id;
    let found = async |lane: Option<&str>| place.store.history_events(&acme(), id, lane).await.unwrap();
    assert_eq!(found(None).await, [stolen[6].clone(), real[6].clone()]);
    assert_eq!(found(Some("acme.edge-1.7")).await, [real[6].clone()]);
    assert_eq!(found(Some(lane_of_thief)).await, [stolen[6].clone()]);
    let page = async |offset| place.store.list_history(&acme(), HistoryFilter::default(), 1000, offset).await.unwrap();
    let listed = [page(0).await, page(1000).await].concat();
    assert_eq!(listed.iter().filter(|row| row.event_id == id).count(), 2);
}

/// What control derives the id of, an edge can seal something under, first and as often as it likes.
#[tokio::test]
async fn what_control_sealed_stands_before_all_that_has_its_id() {
    let place = Place::new().await;
    let own = HistoryRow {
        event_id: external_event_id(&acme(), "control", "approval-1"),
        lane: Some("acme.control.3".into()),
        ..event(&acme(), EventKind::ApprovalRequested, 1)
    };
    // Of an edge that is called almost like it, of a kind that is not an edge's to seal, and by the hundred.
    let under_it = |lane: &str, seq: i64, standing: Standing| HistoryRow {
        lane: Some(lane.into()),
        seq: Some(seq),
        receipt_hash: Some(hash(seq + 500)),
        standing,
        ..own.clone()
    };
    let mut forged = vec![under_it("acme.controls.3", 1, Standing::Own), under_it("acme.edge-1.7", 2, Standing::Foreign)];
    forged.extend((3..203).map(|seq| under_it("acme.edge-1.7", seq, Standing::Own)));
    place.store.insert_history(&forged, &[]).await.unwrap();
    place.store.insert_history(std::slice::from_ref(&own), &[]).await.unwrap();
    assert_eq!(place.store.history_event(&acme(), own.event_id).await.unwrap(), Some(own.clone()));
    let found = place.store.history_events(&acme(), own.event_id, None).await.unwrap();
    assert_eq!((found.len(), &found[0], &found[1]), (100, &own, &forged[0]));
    let of_lane = place.store.history_events(&acme(), own.event_id, Some("acme.control.3")).await.unwrap();
    assert_eq!(of_lane, [own]);
}

/// A lane that was sealed twice at one place is evidence against who holds its key.
#[tokio::test]
async fn both_of_two_receipts_of_one_place_are_kept() {
    let place = Place::new().await;
    let one = event(&acme(), EventKind::AuthorizeDecision, 1);
    let other = HistoryRow { receipt_hash: Some("ff".repeat(32)), decision: Some(Decision::Allow), ..one.clone() };
    for row in [&one, &other, &other, &one] {
        place.store.insert_history(std::slice::from_ref(row), &[]).await.unwrap();
    }
    assert_eq!(
        place.store.proved_of_lane(&acme(), one.lane.as_deref().unwrap(), 0, 10).await.unwrap(),
        [one.clone(), other.clone()]
    );
    assert_eq!(exported(&place, 1).await, [one, other]);
}

#[tokio::test]
async fn lists_are_whole_and_newest_first_whatever_index_they_go_along() {
    let place = Place::new().await;
    let kinds = [EventKind::AuthorizeDecision, EventKind::ToolOutcome, EventKind::ExternalGithubWebhook];
    // Three of each time, that the order among them shows; what claims no hash is among what has none.
    let mut rows: Vec<HistoryRow> = (0..60_usize)
        .map(|n| {
            let seq = i64::try_from(n).unwrap();
            let mut row = event(&acme(), kinds[n % 3], seq);
            row.ts = START.plus_seconds(seq / 3);
            row.agent_id = (n % 4 > 0).then(|| format!("agent-{}", n % 4));
            row.run_id = (n % 5 > 0).then(|| format!("run-{}", n % 5));
            row
        })
        .collect();
    (rows[9].standing, rows[9].receipt_hash) = (Standing::Unproved, None);
    place.store.insert_history(&rows, &[]).await.unwrap();
    let (decisions, outcomes) = ([kinds[0]], [kinds[1]]);
    let some_kinds: [&[EventKind]; 5] = [&[], &decisions, &outcomes, &kinds[..2], &kinds[1..]];
    for of_kinds in some_kinds {
        for agent_id in [None, Some("agent-1"), Some("agent-9")] {
            for run_id in [None, Some("run-2")] {
                for receipts_only in [false, true] {
                    let filter = HistoryFilter { kinds: of_kinds, receipts_only, agent_id, run_id };
                    let passes = |row: &&HistoryRow| {
                        (of_kinds.is_empty() || of_kinds.contains(&row.kind))
                            && agent_id.is_none_or(|agent_id| row.agent_id.as_deref() == Some(agent_id))
                            && run_id.is_none_or(|run_id| row.run_id.as_deref() == Some(run_id))
                            && (!receipts_only || row.receipt_hash.is_some())
                    };
                    let expected: Vec<HistoryRow> = rows.iter().rev().filter(passes).cloned().collect();
                    for (limit, offset) in [(100, 0), (7, 0), (7, 3), (1, 11)] {
                        let listed = place.store.list_history(&acme(), filter, limit, offset).await.unwrap();
                        let page: Vec<HistoryRow> = expected.iter().skip(offset as usize).take(limit as usize).cloned().collect();
                        assert_eq!(listed, page, "{filter:?} {limit} {offset}");
                    }
                }
            }
        }
    }
}

#[tokio::test]
async fn events_are_read_in_the_order_in_which_they_came() {
    let place = Place::new().await;
    let rows: Vec<_> = [3, 1, 9, 2, 4].into_iter().map(|seq| event(&acme(), EventKind::ToolAttempt, seq)).collect();
    place.store.insert_history(&rows, &[]).await.unwrap();
    let span = (START.plus_seconds(2), START.plus_seconds(9));
    let (mut after, mut read) = (0, Vec::new());
    loop {
        let page = place.store.history_in_order(&acme(), after, span, 2).await.unwrap();
        let Some((last, _)) = page.last() else { break };
        after = *last;
        read.extend(page.into_iter().map(|(_, row)| row));
    }
    assert_eq!(read, [rows[0].clone(), rows[3].clone(), rows[4].clone()]);
}
