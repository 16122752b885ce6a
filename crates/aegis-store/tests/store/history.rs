//! The log of events: idempotent, filtered, exported in order.

use aegis_model::{Decision, EventKind, LaneReach};
use aegis_store::{HistoryFilter, HistoryRow};

use crate::fixtures::*;

fn seqs(rows: &[HistoryRow]) -> Vec<i64> {
    rows.iter().filter_map(|row| row.seq).collect()
}

#[tokio::test]
async fn a_batch_that_overlaps_an_earlier_one_adds_only_what_is_new() {
    let mut place = Place::new().await;
    let rows: Vec<_> = (1..=1024).map(|seq| event(&acme(), EventKind::AuthorizeDecision, seq)).collect();
    assert_eq!(place.store.insert_history(&rows[..600], &[]).await.unwrap().new, 600);
    let again = place.store.insert_history(&rows[400..], &[]).await.unwrap();
    assert_eq!((again.new, again.displaced), (424, Vec::new()));
    place.reopen().await;
    assert_eq!(place.store.history_event(&acme(), rows[7].event_id).await.unwrap().as_ref(), Some(&rows[7]));
    let (mut after, mut exported) = (None, Vec::new());
    loop {
        let cursor = after.as_ref().map(|(lane, seq, place): &(String, i64, i64)| (lane.as_str(), *seq, *place));
        let page = place.store.export_lanes(&acme(), cursor, 100).await.unwrap();
        let Some((place, last)) = page.last() else { break };
        after = Some((last.lane.clone().unwrap(), last.seq.unwrap(), *place));
        exported.extend(page.into_iter().map(|(_, row)| row));
    }
    assert_eq!(exported, rows);
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
    let (mut after, mut exported): (Option<(String, i64, i64)>, Vec<i64>) = (None, Vec::new());
    while let Some((at, row)) = {
        let cursor = after.as_ref().map(|(lane, seq, at)| (lane.as_str(), *seq, *at));
        place.store.export_lanes(&acme(), cursor, 1).await.unwrap().pop()
    } {
        exported.push(row.seq.unwrap());
        after = Some((row.lane.unwrap(), row.seq.unwrap(), at));
    }
    assert_eq!(exported, [4, 1, 2, 3]);
}

#[tokio::test]
async fn what_others_put_under_a_receipt_s_place_takes_none_out_of_an_export_and_lets_it_end() {
    let place = Place::new().await;
    let real: Vec<_> = (1..=3).map(|seq| event(&acme(), EventKind::ToolAttempt, seq)).collect();
    let forged: Vec<_> = (0..5).map(|_| HistoryRow { proved: false, ..event(&acme(), EventKind::ToolAttempt, 2) }).collect();
    // It claims a lane behind all others, and no place in it.
    let bare = HistoryRow { proved: false, lane: Some("z".into()), seq: None, ..event(&acme(), EventKind::ToolAttempt, 1) };
    let batches: [&[HistoryRow]; 3] = [&forged, &real, &[bare]];
    for rows in batches {
        place.store.insert_history(rows, &[]).await.unwrap();
    }
    let (mut after, mut exported) = (None, Vec::new());
    for _ in 0..20 {
        let cursor = after.as_ref().map(|(lane, seq, at): &(String, i64, i64)| (lane.as_str(), *seq, *at));
        let page = place.store.export_lanes(&acme(), cursor, 2).await.unwrap();
        let Some((at, last)) = page.last() else { break };
        after = Some((last.lane.clone().unwrap(), last.seq.unwrap(), *at));
        exported.extend(page.into_iter().map(|(_, row)| row));
    }
    let expected: Vec<_> = [&real[..1], &forged[..], &real[1..]].concat();
    assert_eq!(exported, expected);
}

#[tokio::test]
async fn lanes_are_known_by_the_first_proved_receipt_of_a_time_or_later() {
    let place = Place::new().await;
    let mut rows: Vec<_> = (1..=4).map(|seq| event(&acme(), EventKind::ToolAttempt, seq)).collect();
    let start = rows[0].ts;
    rows.iter_mut().zip([0, 10, 20, 30]).for_each(|(row, second)| row.ts = start.plus_seconds(second));
    // What proves nothing says of no lane that it has something.
    (rows[1].proved, rows[3].lane) = (false, Some("acme.edge-0.1".into()));
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
    let forged: Vec<_> = (0..300).map(|_| HistoryRow { proved: false, ..event(&acme(), EventKind::ToolAttempt, 3) }).collect();
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
async fn a_proved_receipt_takes_the_place_of_what_was_put_under_its_id() {
    let place = Place::new().await;
    let real = event(&acme(), EventKind::AuthorizeDecision, 4);
    let mut forged = event(&acme(), EventKind::ToolAttempt, 9);
    (forged.event_id, forged.proved) = (real.event_id, false);
    place.store.insert_history(std::slice::from_ref(&forged), &[]).await.unwrap();
    place.store.insert_history(std::slice::from_ref(&real), &[]).await.unwrap();
    let found = || async { place.store.history_event(&acme(), real.event_id).await.unwrap().unwrap() };
    assert_eq!(found().await, real);
    // And nothing takes its own.
    let other = HistoryRow { seq: Some(5), ..real.clone() };
    place.store.insert_history(&[forged, other], &[]).await.unwrap();
    assert_eq!(found().await, real);
    // What was observed outside claims no lane, and stays: ids of webhooks can be computed.
    let seen = event(&acme(), EventKind::ExternalGithubWebhook, 3);
    let claims = HistoryRow { event_id: seen.event_id, ..event(&acme(), EventKind::AuthorizeDecision, 6) };
    for rows in [vec![seen.clone()], vec![claims.clone()], vec![seen.clone(), claims]] {
        place.store.insert_history(&rows, &[]).await.unwrap();
        assert_eq!(place.store.history_event(&acme(), seen.event_id).await.unwrap().unwrap(), seen);
    }
}

/// Whoever may publish for the tenant can put an observation, or a receipt of its own, under an id that it learned before the receipt arrived.
#[tokio::test]
async fn of_a_receipt_whose_id_is_taken_no_lane_is_noted_to_have_it() {
    let place = Place::new().await;
    let real: Vec<_> = (1..=200).map(|seq| event(&acme(), EventKind::AuthorizeDecision, seq)).collect();
    let seen = HistoryRow { event_id: real[6].event_id, ..event(&acme(), EventKind::ExternalGithubWebhook, 1) };
    let of_another = HistoryRow { event_id: real[99].event_id, lane: Some("acme.edge-2.1".into()), ..real[99].clone() };
    let lane = LaneReach { head: 200, ..LaneReach::none(acme(), "acme.edge-1.7".into()) };
    place.store.insert_history(&[seen.clone(), of_another], &[]).await.unwrap();
    let noted = async || place.store.history_lane(&acme(), "acme.edge-1.7").await.unwrap();
    for new in [198, 0] {
        let kept = place.store.insert_history(&real, std::slice::from_ref(&lane)).await.unwrap();
        assert_eq!((kept.new, kept.displaced), (new, vec![6, 99]));
        assert_eq!(noted().await, None);
    }
    // Both in one batch; and what is there already displaces nothing.
    let late = event(&acme(), EventKind::AuthorizeDecision, 201);
    let first = HistoryRow { event_id: late.event_id, ..seen };
    let kept = place.store.insert_history(&[first, real[0].clone(), late], &[]).await.unwrap();
    assert_eq!((kept.new, kept.displaced), (1, vec![2]));
    let kept = place.store.insert_history(&real[..6], std::slice::from_ref(&lane)).await.unwrap();
    assert_eq!((kept.new, kept.displaced), (0, Vec::new()));
    assert_eq!(noted().await, Some(lane));
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
