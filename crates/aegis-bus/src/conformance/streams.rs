//! Promises of streams: order, dedup, fencing, filters, positions.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use aegis_model::{EventKind, SealedEvent, TenantId, Timestamp};
use bytes::Bytes;
use futures_util::future::join_all;

use super::{DEADLINE, Violation, ensure, publish_one, read_exactly, text};
use crate::{Bus, BusError, MAX_PAYLOAD, Message, Stream, message_id, subject};

pub(super) async fn sequences_start_at_one_and_have_no_gap(bus: Arc<dyn Bus>) -> Result<(), Violation> {
    ensure!(bus.last_seq(Stream::Ase).await? == 0, "an empty stream has a last sequence");
    let messages = (0..300).map(|i| Message::new("ase.00.t.x", text(&i.to_string()))).collect();
    for (i, result) in bus.publish(Stream::Ase, messages).await.into_iter().enumerate() {
        let ack = result?;
        ensure!(ack.seq == i as u64 + 1 && !ack.duplicate, "message {i} got {ack:?}");
    }
    ensure!(bus.last_seq(Stream::Ase).await? == 300, "the last sequence is not the number of messages");
    ensure!(bus.last_seq(Stream::Alerts).await? == 0, "streams share a sequence");
    let mut subscription = bus.subscribe(Stream::Ase, ">", 0).await?;
    for (i, delivered) in read_exactly(&mut subscription, 300).await?.into_iter().enumerate() {
        ensure!(delivered.seq == i as u64 + 1 && delivered.payload == i.to_string(), "message {i} came as {delivered:?}");
    }
    Ok(())
}

pub(super) async fn concurrent_publishers_share_one_gapless_order(bus: Arc<dyn Bus>) -> Result<(), Violation> {
    let publishers = (0..8).map(|publisher| {
        let bus = Arc::clone(&bus);
        async move {
            let mut seqs = Vec::new();
            for round in 0..25 {
                let batch = (0..4).map(|i| Message::new("ase.00.t.x", text(&format!("{publisher} {}", round * 4 + i)))).collect();
                for result in bus.publish(Stream::Ase, batch).await {
                    seqs.push(result?.seq);
                }
            }
            Ok::<_, BusError>(seqs)
        }
    });
    let mut all = BTreeSet::new();
    for seqs in join_all(publishers).await {
        let seqs = seqs?;
        ensure!(seqs.windows(2).all(|w| w[0] < w[1]), "a publisher's messages are not in its order");
        all.extend(seqs);
    }
    ensure!(all.iter().copied().eq(1..=800), "the sequences have gaps or repeats");
    let mut subscription = bus.subscribe(Stream::Ase, ">", 1).await?;
    let delivered = read_exactly(&mut subscription, 800).await?;
    ensure!(delivered.iter().map(|d| d.seq).eq(1..=800), "the messages were delivered out of order");
    let payloads: BTreeSet<Bytes> = delivered.into_iter().map(|d| d.payload).collect();
    ensure!(payloads.len() == 800, "a message was lost or came twice");
    Ok(())
}

pub(super) async fn a_message_id_is_stored_once(bus: Arc<dyn Bus>) -> Result<(), Violation> {
    let message = || Message::new("ase.00.t.x", text("one")).with_id("id-1");
    let first = publish_one(&bus, Stream::Ase, message()).await?;
    let again = publish_one(&bus, Stream::Ase, message()).await?;
    ensure!(!first.duplicate && again.duplicate && again.seq == first.seq, "a repeated id got {again:?} after {first:?}");
    let batch = bus.publish(Stream::Ase, vec![message().with_id("id-2"), message().with_id("id-2"), message()]).await;
    let acks = batch.into_iter().collect::<Result<Vec<_>, _>>()?;
    let duplicates: Vec<_> = acks.iter().map(|a| a.duplicate).collect();
    ensure!(duplicates == [false, true, true], "repeats within a batch got {acks:?}");
    ensure!(bus.last_seq(Stream::Ase).await? == 2, "a duplicate took a sequence");
    let other = publish_one(&bus, Stream::Alerts, Message::new("alert.t.a", text("x")).with_id("id-1")).await?;
    ensure!(!other.duplicate, "an id counts across streams");
    Ok(())
}

/// As long as it lives, whether the bus drops it afterwards or not.
pub(super) async fn a_message_with_a_time_to_live_is_like_any_other(bus: Arc<dyn Bus>) -> Result<(), Violation> {
    let message = |id: &str| Message::new(format!("approval.t.{id}"), text(id)).with_id(id).with_ttl(Duration::from_secs(3600));
    let batch = vec![message("a"), Message::new("approval.t.b", text("b")), message("a"), message("c")];
    let acks = bus.publish(Stream::Approvals, batch).await.into_iter().collect::<Result<Vec<_>, _>>()?;
    let answers: Vec<_> = acks.iter().map(|ack| (ack.seq, ack.duplicate)).collect();
    ensure!(answers == [(1, false), (2, false), (1, true), (3, false)], "messages with a time to live got {answers:?}");
    let mut subscription = bus.subscribe(Stream::Approvals, "approval.>", 1).await?;
    let payloads: Vec<_> = read_exactly(&mut subscription, 3).await?.into_iter().map(|delivered| delivered.payload).collect();
    ensure!(payloads == ["a", "b", "c"], "the stream has {payloads:?}");
    Ok(())
}

/// Control derives the id of an approval's event, so that anybody can name it, and be there first.
pub(super) async fn an_event_s_id_is_each_lane_s_own(bus: Arc<dyn Bus>) -> Result<(), Violation> {
    let tenant = TenantId::new("t").map_err(|error| Violation(error.to_string()))?;
    let sealed = |lane: &str, hash: &str| SealedEvent {
        tenant_id: tenant.clone(),
        event_id: uuid::Uuid::from_u128(7),
        kind: EventKind::ApprovalRequested,
        lane: lane.to_owned(),
        seq: 1,
        ts: Timestamp::from_micros(0),
        receipt_hash: hash.repeat(8),
        prev_receipt_hash: String::new(),
        wire: String::new(),
    };
    let message = |event: &SealedEvent| {
        Message::new(subject::ase(&tenant, event.kind), text(&event.lane)).with_id(message_id::of_sealed(event))
    };
    let (edge_s, control_s) = (sealed("t.edge-1.1", "89abcdef"), sealed("t.control.1", "01234567"));
    let named = |id: String| Message::new(subject::ase(&tenant, EventKind::AuthorizeDecision), text("in its place")).with_id(id);
    let ahead = [edge_s.event_id.to_string(), format!("{}.{}", control_s.event_id, control_s.lane)];
    let batch =
        ahead.map(named).into_iter().chain([message(&edge_s), message(&control_s), message(&edge_s), message(&control_s)]);
    let acks = bus.publish(Stream::Ase, batch.collect()).await.into_iter().collect::<Result<Vec<_>, _>>()?;
    let answers: Vec<_> = acks.iter().map(|ack| (ack.seq, ack.duplicate)).collect();
    let expected = [(1, false), (2, false), (3, false), (4, false), (3, true), (4, true)];
    ensure!(answers == expected, "an event's id in two lanes, and again, got {answers:?}");
    let mut subscription = bus.subscribe(Stream::Ase, "ase.*.t.approval_requested", 1).await?;
    let lanes: Vec<_> = read_exactly(&mut subscription, 2).await?.into_iter().map(|delivered| delivered.payload).collect();
    ensure!(lanes == ["t.edge-1.1", "t.control.1"], "the stream has {lanes:?}");
    Ok(())
}

pub(super) async fn an_expected_sequence_lets_one_publisher_win(bus: Arc<dyn Bus>) -> Result<(), Violation> {
    let contenders = (0..8).map(|i| {
        let bus = Arc::clone(&bus);
        async move { publish_one(&bus, Stream::Alerts, Message::new("alert.t.a", text(&i.to_string())).expecting(0)).await }
    });
    let results = join_all(contenders).await;
    let won: Vec<_> = results.iter().filter_map(|r| r.as_ref().ok()).collect();
    ensure!(won.len() == 1, "{} publishers found the same subject empty", won.len());
    let winner = won[0].seq;
    for refusal in results.iter().filter_map(|r| r.as_ref().err()) {
        let expected = BusError::WrongLastSequence { subject: "alert.t.a".to_owned(), actual: winner };
        ensure!(*refusal == expected, "the losers got {refusal:?}");
    }
    let next = publish_one(&bus, Stream::Alerts, Message::new("alert.t.a", text("next")).expecting(winner)).await?;
    let stale = publish_one(&bus, Stream::Alerts, Message::new("alert.t.a", text("stale")).expecting(winner)).await;
    ensure!(
        matches!(stale, Err(BusError::WrongLastSequence { actual, .. }) if actual == next.seq),
        "a stale expectation got {stale:?}"
    );
    publish_one(&bus, Stream::Alerts, Message::new("alert.t.b", text("other")).expecting(0)).await?;
    let batch = vec![Message::new("alert.t.c", text("1")).expecting(0), Message::new("alert.t.c", text("2")).expecting(0)];
    let results = bus.publish(Stream::Alerts, batch).await;
    ensure!(results[0].is_ok() && results[1].is_err(), "two of one batch found the same subject empty");
    Ok(())
}

/// Which of the two a server looks at first has changed between its versions; both tell the publisher that its message is there.
pub(super) async fn a_retry_after_a_lost_answer_finds_its_message(bus: Arc<dyn Bus>) -> Result<(), Violation> {
    let message = || Message::new("alert.t.a", text("a")).with_id("a").expecting(0);
    let first = publish_one(&bus, Stream::Alerts, message()).await?;
    let found = match publish_one(&bus, Stream::Alerts, message()).await {
        Ok(ack) if ack.duplicate => ack.seq,
        Err(BusError::WrongLastSequence { actual, .. }) => actual,
        other => return Err(Violation(format!("a retry after a lost answer got {other:?}"))),
    };
    ensure!(found == first.seq, "a retry found {found} instead of {}", first.seq);
    ensure!(bus.last_seq(Stream::Alerts).await? == first.seq, "a retry was stored");
    Ok(())
}

pub(super) async fn a_refused_message_leaves_its_neighbours_alone(bus: Arc<dyn Bus>) -> Result<(), Violation> {
    let too_large = Bytes::from(vec![b'x'; MAX_PAYLOAD + 1]);
    let batch = vec![
        Message::new("ase.00.t.x", text("before")),
        Message::new("ase.00.t.x", too_large),
        Message::new("ase.*.t", text("a wildcard")),
        Message::new("alert.t.x", text("another stream's subject")),
        Message::new("ase.00.t.x", Bytes::from(vec![b'x'; MAX_PAYLOAD - 1024])),
        Message::new("ase.00.t.x", text("")),
    ];
    let results = bus.publish(Stream::Ase, batch).await;
    ensure!(results.len() == 6, "{} results for 6 messages", results.len());
    ensure!(matches!(results[1], Err(BusError::TooLarge { .. })), "an oversized payload got {:?}", results[1]);
    ensure!(matches!(results[2], Err(BusError::Invalid { .. })), "a wildcard subject got {:?}", results[2]);
    ensure!(results[3].is_err(), "a foreign subject was taken");
    for (i, seq) in [(0, 1), (4, 2), (5, 3)] {
        ensure!(matches!(&results[i], Ok(ack) if ack.seq == seq), "message {i} got {:?}", results[i]);
    }
    Ok(())
}

pub(super) async fn what_is_begun_is_stored_in_that_order_whoever_waits(bus: Arc<dyn Bus>) -> Result<(), Violation> {
    let mut under_way = Vec::new();
    for publish in 0..6 {
        let messages = (0..100).map(|i| Message::new("ase.00.t.x", text(&(publish * 100 + i).to_string()))).collect();
        under_way.push(bus.begin_publish(Stream::Ase, messages).await);
    }
    // Nobody waits for the first of them: it is stored all the same. The last is asked first.
    drop(under_way.remove(0));
    for (publish, acks) in under_way.into_iter().enumerate().rev() {
        for (i, result) in acks.await.into_iter().enumerate() {
            let (ack, expected) = (result?, (publish as u64 + 1) * 100 + i as u64 + 1);
            ensure!(ack.seq == expected && !ack.duplicate, "message {i} of publish {} got {ack:?}", publish + 1);
        }
    }
    let mut subscription = bus.subscribe(Stream::Ase, ">", 1).await?;
    let delivered = read_exactly(&mut subscription, 600).await?;
    let in_order = delivered.iter().enumerate().all(|(i, d)| d.payload == i.to_string());
    ensure!(in_order, "what was begun is stored in another order");
    let none = bus.begin_publish(Stream::Ase, Vec::new()).await.await;
    ensure!(none.is_empty(), "{} results for no message", none.len());
    Ok(())
}

pub(super) async fn a_refusal_under_way_is_of_its_own_publish(bus: Arc<dyn Bus>) -> Result<(), Violation> {
    let too_large = || Message::new("ase.00.t.x", Bytes::from(vec![b'x'; MAX_PAYLOAD + 1]));
    let message = |payload: &str| Message::new("ase.00.t.x", text(payload)).with_id(payload);
    let first = bus.begin_publish(Stream::Ase, vec![message("a"), too_large(), message("b")]).await;
    let second = bus.begin_publish(Stream::Ase, vec![message("c"), message("a")]).await;
    let (first, second) = (first.await, second.await);
    ensure!(matches!(first[1], Err(BusError::TooLarge { .. })), "an oversized payload got {:?}", first[1]);
    let seqs: Vec<_> = [&first[0], &first[2], &second[0]].into_iter().map(|r| r.as_ref().ok().map(|ack| ack.seq)).collect();
    ensure!(seqs == [Some(1), Some(2), Some(3)], "those beside it got {first:?} and {second:?}");
    ensure!(matches!(&second[1], Ok(ack) if ack.duplicate && ack.seq == 1), "an id that is under way got {:?}", second[1]);
    Ok(())
}

pub(super) async fn a_filter_delivers_what_matches_in_order(bus: Arc<dyn Bus>) -> Result<(), Violation> {
    let subjects = ["ase.00.a.x", "ase.00.b.x", "ase.01.a.y", "tick.00", "ase.00.a.y", "ase.00.ab.x"];
    let messages = subjects.iter().cycle().take(60).map(|s| Message::new(*s, text(s))).collect();
    for result in bus.publish(Stream::Ase, messages).await {
        result?;
    }
    for (filter, matching) in [
        (">", vec![0, 1, 2, 3, 4, 5]),
        ("ase.00.a.>", vec![0, 4]),
        ("ase.*.a.*", vec![0, 2, 4]),
        ("ase.00.>", vec![0, 1, 4, 5]),
        ("*.00", vec![3]),
        ("tick.00", vec![3]),
    ] {
        let mut subscription = bus.subscribe(Stream::Ase, filter, 1).await?;
        let delivered = read_exactly(&mut subscription, matching.len() * 10).await?;
        let seqs: Vec<_> = delivered.iter().map(|d| (d.seq - 1) % 6).collect();
        let expected: Vec<_> = matching.iter().copied().cycle().take(matching.len() * 10).collect();
        ensure!(seqs == expected, "filter {filter} delivered {seqs:?}");
        ensure!(delivered.iter().all(|d| d.payload == d.subject), "filter {filter} mixed up subjects and payloads");
    }
    ensure!(bus.subscribe(Stream::Ase, "ase.>.a", 1).await.is_err(), "`>` was accepted in the middle of a filter");
    Ok(())
}

pub(super) async fn a_subscription_starts_where_it_is_told(bus: Arc<dyn Bus>) -> Result<(), Violation> {
    let messages = (0..20).map(|i| Message::new("ase.00.t.x", text(&i.to_string()))).collect();
    for result in bus.publish(Stream::Ase, messages).await {
        result?;
    }
    let mut subscription = bus.subscribe(Stream::Ase, ">", 15).await?;
    let seqs: Vec<_> = read_exactly(&mut subscription, 6).await?.iter().map(|d| d.seq).collect();
    ensure!(seqs == [15, 16, 17, 18, 19, 20], "from 15 came {seqs:?}");
    let mut future = bus.subscribe(Stream::Ase, ">", 22).await?;
    publish_one(&bus, Stream::Ase, Message::new("ase.00.t.x", text("21"))).await?;
    publish_one(&bus, Stream::Ase, Message::new("ase.00.t.x", text("22"))).await?;
    let seqs: Vec<_> = read_exactly(&mut future, 1).await?.iter().map(|d| d.seq).collect();
    ensure!(seqs == [22], "from the future sequence 22 came {seqs:?}");
    Ok(())
}

pub(super) async fn a_waiting_subscription_wakes(bus: Arc<dyn Bus>) -> Result<(), Violation> {
    let mut subscription = bus.subscribe(Stream::Ase, "ase.00.t.>", 1).await?;
    let empty = subscription.next_batch(10, Duration::ZERO).await?;
    ensure!(empty.is_empty(), "an empty stream delivered {empty:?}");
    let waiting = tokio::spawn(async move { subscription.next_batch(10, DEADLINE).await });
    publish_one(&bus, Stream::Ase, Message::new("ase.00.other.x", text("not for it"))).await?;
    publish_one(&bus, Stream::Ase, Message::new("ase.00.t.x", text("for it"))).await?;
    let delivered = waiting.await.map_err(|e| Violation(format!("the waiting reader ended: {e}")))??;
    ensure!(delivered.len() == 1 && delivered[0].payload == "for it", "the waiting reader got {delivered:?}");
    Ok(())
}

pub(super) async fn episodes_keep_the_latest_of_a_subject(bus: Arc<dyn Bus>) -> Result<(), Violation> {
    for (subject, payload) in [("episode.t.a", "a1"), ("episode.t.b", "b1"), ("episode.t.a", "a2"), ("episode.t.a", "a3")] {
        publish_one(&bus, Stream::Episodes, Message::new(subject, text(payload))).await?;
    }
    let batch = ["b2", "b3"].map(|payload| Message::new("episode.t.b", text(payload))).to_vec();
    for result in bus.publish(Stream::Episodes, batch).await {
        result?;
    }
    let mut subscription = bus.subscribe(Stream::Episodes, ">", 1).await?;
    let delivered = read_exactly(&mut subscription, 2).await?;
    let found: Vec<_> = delivered.iter().map(|d| (d.seq, d.payload.as_ref())).collect();
    ensure!(found == [(4, &b"a3"[..]), (6, &b"b3"[..])], "a late reader got {delivered:?}");
    let state = bus.stream_state(Stream::Episodes).await?;
    ensure!(state.messages == 2 && state.last_seq == 6, "the stream holds {state:?}");
    let fenced = publish_one(&bus, Stream::Episodes, Message::new("episode.t.a", text("a4")).expecting(4)).await?;
    ensure!(fenced.seq == 7, "a fenced write got {fenced:?}");
    Ok(())
}

pub(super) async fn consumer_positions_are_remembered(bus: Arc<dyn Bus>) -> Result<(), Violation> {
    for _ in 0..3 {
        publish_one(&bus, Stream::Ase, Message::new("ase.00.t.x", text("x"))).await?;
    }
    ensure!(bus.consumer_position(Stream::Ase, "detect-00").await? == 0, "an unknown consumer has a position");
    bus.set_consumer_position(Stream::Ase, "detect-00", 3).await?;
    bus.set_consumer_position(Stream::Ase, "history", 1).await?;
    ensure!(bus.consumer_position(Stream::Ase, "detect-00").await? == 3, "the position was not kept");
    bus.set_consumer_position(Stream::Ase, "detect-00", 2).await?;
    ensure!(bus.consumer_position(Stream::Ase, "detect-00").await? == 2, "a consumer cannot go back");
    ensure!(bus.set_consumer_position(Stream::Ase, "detect-00", 4).await.is_err(), "a position past the end was taken");
    ensure!(bus.consumer_position(Stream::Alerts, "detect-00").await? == 0, "streams share positions");
    bus.forget_consumer(Stream::Ase, "detect-00").await?;
    ensure!(bus.consumer_position(Stream::Ase, "detect-00").await? == 0, "a forgotten consumer has a position");
    ensure!(bus.consumer_position(Stream::Ase, "history").await? == 1, "forgetting one consumer touched another");
    Ok(())
}

pub(super) async fn a_stream_has_an_identity(bus: Arc<dyn Bus>) -> Result<(), Violation> {
    let ase = bus.stream_identity(Stream::Ase).await?;
    ensure!(!ase.is_empty() && ase == bus.stream_identity(Stream::Ase).await?, "the identity changes");
    Ok(())
}
