//! Messages that somebody else keeps: read again, recognised, dropped by whole runs, and never mistaken for others. On a disk that refuses them: `refused`.

mod disk;
mod refused;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aegis_bus::{Bus, BusError, Delivered, EmbeddedBus, EmbeddedLimits, Held, Keeper, Message, Stream, StreamLimits};
use aegis_model::{Reading, SecurityEvent, SystemClock};
use async_trait::async_trait;
use parking_lot::Mutex;
use proptest::prelude::*;
use sqlx::Connection;

/// A ledger's stand-in.
#[derive(Debug, Default)]
struct Shelf(Mutex<BTreeMap<i64, Held>>);

#[async_trait]
impl Keeper for Shelf {
    async fn read(&self, first: i64, count: usize) -> Result<Vec<Held>, BusError> {
        let end = first + i64::try_from(count).unwrap();
        Ok(self.0.lock().range(first..end).map(|(_, held)| held.clone()).collect())
    }

    fn last(&self) -> i64 {
        self.0.lock().keys().next_back().copied().unwrap_or(0)
    }
}

impl Shelf {
    /// Keeps a message and gives it out for publishing.
    fn keep(&self, position: i64, subject: &str, text: &str) -> Message {
        let held = Held {
            position,
            msg_id: format!("id of {text}"),
            subject: subject.to_owned(),
            payload: text.to_owned().into(),
            reading: Reading::default(),
        };
        let message = Message::new(subject, held.payload.clone()).with_id(held.msg_id.clone()).kept(&"shelf".into(), position);
        self.0.lock().insert(position, held);
        message
    }
}

/// A tail of one message, so that everything older is read from the file.
fn limits() -> EmbeddedLimits {
    EmbeddedLimits { tail_messages: 1, unread_messages: 1, ..EmbeddedLimits::default() }
}

async fn open(folder: &Path, limits: EmbeddedLimits, shelf: &Arc<Shelf>) -> Arc<EmbeddedBus> {
    let bus = EmbeddedBus::open(&folder.join("bus.db"), limits, Arc::new(SystemClock)).await.unwrap();
    bus.keep_with("shelf", Arc::clone(shelf) as Arc<dyn Keeper>).await.unwrap();
    bus
}

async fn read(bus: &EmbeddedBus, filter: &str, from: u64, max: usize) -> Vec<Delivered> {
    let mut subscription = bus.subscribe(Stream::Ase, filter, from).await.unwrap();
    let mut all = Vec::new();
    loop {
        let batch = subscription.next_batch(max, Duration::ZERO).await.unwrap();
        assert!(batch.len() <= max);
        if batch.is_empty() {
            return all;
        }
        all.extend(batch);
    }
}

fn texts(messages: &[Delivered]) -> Vec<(u64, String)> {
    messages.iter().map(|m| (m.seq, String::from_utf8(m.payload.to_vec()).unwrap())).collect()
}

/// What a reader gets in the place of messages that nobody has any more.
fn lost(source: i64, position: i64, count: u64) -> String {
    format!("{{\"lost\":{{\"source\":{source},\"position\":{position},\"count\":{count}}}}}")
}

async fn count(folder: &Path, table: &'static str) -> i64 {
    let url = format!("sqlite://{}", folder.join("bus.db").display());
    let mut file = sqlx::SqliteConnection::connect(&url).await.unwrap();
    let sql = match table {
        "messages" => "SELECT count(*) FROM messages",
        _ => "SELECT count(*) FROM runs",
    };
    sqlx::query_scalar(sql).fetch_one(&mut file).await.unwrap()
}

#[tokio::test]
async fn what_is_kept_elsewhere_is_read_there_and_stored_as_runs() {
    let (folder, shelf) = (tempfile::tempdir().unwrap(), Arc::new(Shelf::default()));
    let bus = open(folder.path(), limits(), &shelf).await;
    // 5 to 7, then a jump, then one that is stored whole in the middle.
    let mut messages: Vec<Message> = [5, 6, 7, 9].map(|n| shelf.keep(n, "ase.00.t.x", &format!("kept {n}"))).into();
    messages.push(Message::new("ase.00.t.y", "whole"));
    messages.push(shelf.keep(10, "ase.00.t.y", "kept 10"));
    let acks = bus.publish(Stream::Ase, messages).await;
    assert!(acks.iter().zip(1..).all(|(ack, seq)| ack.as_ref().unwrap().seq == seq));
    let expected: Vec<(u64, String)> =
        (1..).zip(["kept 5", "kept 6", "kept 7", "kept 9", "whole", "kept 10"].map(str::to_owned)).collect();
    let read_now = read(&bus, "ase.>", 1, 100).await;
    assert_eq!(texts(&read_now), expected);
    assert_eq!(
        read_now.iter().map(|m| m.kept.as_ref().map(|k| k.position)).collect::<Vec<_>>(),
        [Some(5), Some(6), Some(7), Some(9), None, Some(10)]
    );
    let state = bus.stream_state(Stream::Ase).await.unwrap();
    bus.close().await;
    assert_eq!((count(folder.path(), "messages").await, count(folder.path(), "runs").await), (1, 3));

    let bus = open(folder.path(), limits(), &shelf).await;
    assert_eq!(bus.stream_state(Stream::Ase).await.unwrap(), state);
    assert_eq!(read(&bus, "ase.>", 1, 100).await, read_now);
    assert_eq!(texts(&read(&bus, "ase.*.t.y", 2, 1).await), expected[4..]);
    assert_eq!(texts(&read(&bus, ">", 3, 2).await), expected[2..]);
}

#[tokio::test]
async fn an_event_that_is_handed_on_beside_a_kept_payload_comes_to_readers_unread() {
    let (folder, shelf) = (tempfile::tempdir().unwrap(), Arc::new(Shelf::default()));
    let bus = open(folder.path(), EmbeddedLimits::default(), &shelf).await;
    let text = |n: i64| {
        let id = event_id(n);
        format!(
            r#"{{"event_id":"{id}","tenant_id":"acme","edge_id":"e","source":"edge","kind":"tool_outcome","ts":"2026-11-22T13:30:56Z"}}"#
        )
    };
    let subject = "ase.00.acme.tool_outcome";
    // Not what the texts say, to see who reads them.
    let handing_on = |message: Message| {
        let mut event: SecurityEvent = serde_json::from_slice(&message.payload).unwrap();
        event.reason = Some("unread".to_owned());
        Message { event: Some(Arc::new(event)), ..message }
    };
    let messages = vec![
        handing_on(shelf.keep(1, subject, &text(1))),
        shelf.keep(2, subject, &text(2)),
        // Nobody of this process keeps these.
        handing_on(Message::new(subject, text(3))),
        handing_on(Message::new(subject, text(4)).kept(&"nobody".into(), 4)),
    ];
    assert!(bus.publish(Stream::Ase, messages).await.iter().all(Result::is_ok));
    let read_now = read(&bus, "ase.>", 1, 100).await;
    let reasons: Vec<Option<String>> = read_now
        .iter()
        .map(|message| {
            let read = message.event().unwrap();
            assert_eq!(read.event().bus_ts, Some(message.bus_ts));
            read.event().reason.clone()
        })
        .collect();
    assert_eq!(reasons, [Some("unread".to_owned()), None, None, None]);
    bus.close().await;
}

#[tokio::test]
async fn a_kept_message_that_is_published_again_is_recognised() {
    let (folder, shelf) = (tempfile::tempdir().unwrap(), Arc::new(Shelf::default()));
    let bus = open(folder.path(), limits(), &shelf).await;
    let messages: Vec<Message> = [1, 2, 4].map(|n| shelf.keep(n, "ase.00.t.x", &format!("kept {n}"))).into();
    let twice: Vec<Message> = messages.iter().chain(&messages[1..]).cloned().collect();
    let answer = |acks: Vec<Result<aegis_bus::PubAck, BusError>>| -> Vec<(u64, bool)> {
        acks.into_iter().map(|ack| ack.map(|ack| (ack.seq, ack.duplicate)).unwrap()).collect()
    };
    assert_eq!(answer(bus.publish(Stream::Ase, twice).await), [(1, false), (2, false), (3, false), (2, true), (3, true)]);
    bus.close().await;

    let bus = open(folder.path(), limits(), &shelf).await;
    // What the file named before it was damaged, and is there again, was never published.
    let mut more = messages;
    more.push(shelf.keep(3, "ase.00.t.x", "kept 3"));
    more.push(shelf.keep(5, "ase.00.t.x", "kept 5"));
    assert_eq!(answer(bus.publish(Stream::Ase, more).await), [(1, true), (2, true), (3, true), (4, false), (5, false)]);
    let all = texts(&read(&bus, ">", 0, 10).await);
    assert_eq!(all.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>(), ["kept 1", "kept 2", "kept 4", "kept 3", "kept 5"]);
}

#[tokio::test]
async fn a_keeper_that_was_replaced_is_another_keeper() {
    let (folder, shelf) = (tempfile::tempdir().unwrap(), Arc::new(Shelf::default()));
    let bus = open(folder.path(), limits(), &shelf).await;
    let old: Vec<Message> = [1, 2, 3].map(|n| shelf.keep(n, "ase.00.t.x", &format!("old {n}"))).into();
    bus.publish(Stream::Ase, old).await;
    bus.close().await;

    // One message of it that was damaged and set aside makes it no other.
    let damaged = Arc::new(Shelf::default());
    for n in [1, 2] {
        damaged.keep(n, "ase.00.t.x", &format!("old {n}"));
    }
    damaged.keep(4, "ase.00.t.x", "after the damage");
    let bus = open(folder.path(), limits(), &damaged).await;
    let kept: Vec<bool> = read(&bus, ">", 0, 9).await.iter().map(|m| m.kept.is_some()).collect();
    assert_eq!(kept, [true, true, false]);
    bus.close().await;

    // Its file was replaced, and went on from there with other messages.
    let replaced = Arc::new(Shelf::default());
    let new: Vec<Message> = [1, 2, 3, 4].map(|n| replaced.keep(n, "ase.00.t.x", &format!("new {n}"))).into();
    let bus = open(folder.path(), limits(), &replaced).await;
    assert!(
        bus.publish(Stream::Ase, new).await.into_iter().all(|ack| !ack.unwrap().duplicate),
        "no new message is taken for an old one"
    );
    let all = read(&bus, "ase.>", 0, 100).await;
    assert_eq!(all.len(), 5);
    assert_eq!(texts(&all[..1]), [(3, lost(0, 1, 3))], "no old message reads as a new one");
    assert_eq!(
        all[1..].iter().map(|m| m.payload.to_vec()).collect::<Vec<_>>(),
        [1, 2, 3, 4].map(|n| format!("new {n}").into_bytes())
    );
    // A subscriber of one tenant does not get what nobody knows the tenant of.
    assert_eq!(read(&bus, "ase.*.t.>", 0, 100).await.len(), 4);
}

#[tokio::test]
async fn of_a_keeper_that_was_restored_what_it_still_has_is_read_and_nothing_new_is_taken_for_old() {
    // What it has of the nine that were published, and whether it wrote on before the bus saw it again.
    let cases: [(i64, bool, i64); 7] =
        [(9, true, 9), (7, true, 6), (7, false, 6), (6, true, 6), (5, false, 3), (2, true, 0), (0, true, 0)];
    for (has, writes_on, same) in cases {
        let (folder, shelf) = (tempfile::tempdir().unwrap(), Arc::new(Shelf::default()));
        let bus = open(folder.path(), limits(), &shelf).await;
        let mut old = Vec::new();
        for positions in [1..=3, 4..=6, 7..=9] {
            let messages: Vec<Message> = positions.map(|n| shelf.keep(n, "ase.00.t.x", &format!("old {n}"))).collect();
            old.extend(messages.clone());
            bus.publish(Stream::Ase, messages).await;
        }
        bus.close().await;

        let restored = Arc::new(Shelf::default());
        (1..=has).for_each(|n| _ = restored.keep(n, "ase.00.t.x", &format!("old {n}")));
        let mut new: Vec<Message> = Vec::new();
        let write_on =
            |new: &mut Vec<Message>| new.extend((has + 1..=12).map(|n| restored.keep(n, "ase.00.t.x", &format!("new {n}"))));
        if writes_on {
            write_on(&mut new);
        }
        for start in 0..2 {
            let bus = open(folder.path(), limits(), &restored).await;
            if start == 0 && !writes_on {
                write_on(&mut new);
            }
            // The shipper goes on from the position that was restored too: some of what was shipped comes again.
            let mut again: Vec<Message> = old.iter().take(usize::try_from(same).unwrap()).cloned().collect();
            again.extend(new.clone());
            let acks = bus.publish(Stream::Ase, again).await;
            let duplicates = acks.iter().filter(|ack| ack.as_ref().unwrap().duplicate).count();
            assert_eq!(duplicates, if start == 0 { usize::try_from(same).unwrap() } else { acks.len() }, "{has} {start}");
            let all = texts(&read(&bus, ">", 0, 100).await);
            let mut expected: Vec<(u64, String)> = (1..=same).map(|n| (n.unsigned_abs(), format!("old {n}"))).collect();
            expected.extend((same..9).step_by(3).map(|n| (n.unsigned_abs() + 3, lost(0, n + 1, 3))));
            expected.extend((10..).zip((has + 1..=12).map(|n| format!("new {n}"))));
            assert_eq!(all, expected, "{has} {writes_on} {start}");
            bus.close().await;
        }
    }
}

/// A ledger's events, under the ids that this version gives them.
fn sealed_on(shelf: &Shelf, positions: std::ops::RangeInclusive<i64>) -> Vec<Message> {
    let sealed = |n: i64| {
        let message = shelf.keep(n, "ase.00.t.x", &format!("sealed {n}"));
        let id = format!("{}.t.edge-1.1.0123456789abcdef", event_id(n));
        shelf.0.lock().get_mut(&n).unwrap().msg_id.clone_from(&id);
        message.with_id(id)
    };
    positions.map(sealed).collect()
}

fn event_id(n: i64) -> String {
    uuid::Uuid::from_u128(n.unsigned_abs().into()).to_string()
}

#[tokio::test]
async fn what_an_earlier_version_published_under_its_event_s_id_alone_is_still_known() {
    let (folder, shelf) = (tempfile::tempdir().unwrap(), Arc::new(Shelf::default()));
    let bus = open(folder.path(), limits(), &shelf).await;
    for positions in [1..=3, 4..=6] {
        bus.publish(Stream::Ase, sealed_on(&shelf, positions)).await;
    }
    bus.close().await;
    // As an earlier version leaves its file.
    let url = format!("sqlite://{}", folder.path().join("bus.db").display());
    let mut file = sqlx::SqliteConnection::connect(&url).await.unwrap();
    let as_it_was = "UPDATE runs SET last_id = substr(last_id, 1, 36); UPDATE sources SET last_id = substr(last_id, 1, 36); PRAGMA user_version = 3";
    sqlx::raw_sql(as_it_was).execute(&mut file).await.unwrap();
    let noted: Vec<String> = sqlx::query_scalar("SELECT last_id FROM runs ORDER BY pos").fetch_all(&mut file).await.unwrap();
    assert_eq!(noted, [event_id(3), event_id(6)]);
    file.close().await.unwrap();

    let bus = open(folder.path(), limits(), &shelf).await;
    let all: Vec<(u64, String)> = (1..=6).map(|n| (n, format!("sealed {n}"))).collect();
    assert_eq!(texts(&read(&bus, ">", 0, 100).await), all, "nothing is lost");
    // The shipper goes on a little before where it was.
    let acks = bus.publish(Stream::Ase, sealed_on(&shelf, 5..=7)).await;
    let acks: Vec<(u64, bool)> = acks.into_iter().map(|ack| ack.map(|ack| (ack.seq, ack.duplicate)).unwrap()).collect();
    assert_eq!(acks, [(5, true), (6, true), (7, false)]);
    bus.close().await;

    // Another ledger in its place is another one as ever: there, other events have these rows.
    let replaced = Arc::new(Shelf::default());
    (1..=7).for_each(|n| _ = replaced.keep(n, "ase.00.t.x", &format!("new {n}")));
    let bus = open(folder.path(), limits(), &replaced).await;
    assert_eq!(texts(&read(&bus, ">", 0, 100).await), [(3, lost(0, 1, 3)), (6, lost(0, 4, 3)), (7, lost(0, 7, 1))]);
}

#[tokio::test]
async fn what_a_keeper_cannot_read_any_more_is_lost_by_stretches() {
    let (folder, shelf) = (tempfile::tempdir().unwrap(), Arc::new(Shelf::default()));
    let bus = open(folder.path(), limits(), &shelf).await;
    let messages: Vec<Message> = (1..=9).map(|n| shelf.keep(n, "ase.00.t.x", &format!("kept {n}"))).collect();
    bus.publish(Stream::Ase, messages).await;
    [1, 2, 5, 8, 9].iter().for_each(|n| _ = shelf.0.lock().remove(n));
    // Positions were given away, so that this is damage and no other file.
    shelf.keep(10, "ase.00.t.x", "later");
    bus.close().await;
    let bus = open(folder.path(), limits(), &shelf).await;
    let expected = [
        (2, lost(1, 1, 2)),
        (3, "kept 3".to_owned()),
        (4, "kept 4".to_owned()),
        (5, lost(1, 5, 1)),
        (6, "kept 6".to_owned()),
        (7, "kept 7".to_owned()),
        (9, lost(1, 8, 2)),
    ];
    assert_eq!(texts(&read(&bus, ">", 0, 100).await), expected);
    assert_eq!(texts(&read(&bus, ">", 4, 100).await), expected[2..]);
    assert_eq!(texts(&read(&bus, "ase.00.t.>", 0, 2).await).len(), 4);
}

/// What of a bus file is on the disk once it is settled, whatever becomes of the machine.
fn copy_of(folder: &Path) -> tempfile::TempDir {
    let disk = tempfile::tempdir().unwrap();
    for file in ["bus.db", "bus.db-wal"] {
        std::fs::copy(folder.join(file), disk.path().join(file)).unwrap();
    }
    disk
}

#[tokio::test]
async fn a_file_that_lost_its_end_with_the_power_says_where_to_begin_again_and_takes_the_rest_in_its_place() {
    let (folder, shelf) = (tempfile::tempdir().unwrap(), Arc::new(Shelf::default()));
    let at = async |folder: &Path| EmbeddedBus::open(&folder.join("bus.db"), limits(), Arc::new(SystemClock)).await.unwrap();
    let keeper = || Arc::clone(&shelf) as Arc<dyn Keeper>;
    let bus = at(folder.path()).await;
    assert_eq!(bus.keep_with("shelf", keeper()).await.unwrap(), None, "a keeper that is new begins where it says itself");
    let messages: Vec<Message> = (1..=6).map(|n| shelf.keep(n, "ase.00.t.x", &format!("kept {n}"))).collect();
    for message in &messages[..3] {
        bus.publish(Stream::Ase, vec![message.clone()]).await.pop().unwrap().unwrap();
    }
    bus.settle().await.unwrap();
    let disk = copy_of(folder.path());
    bus.publish(Stream::Ase, messages[3..].to_vec()).await;
    assert_eq!(bus.last_seq(Stream::Ase).await.unwrap(), 6);
    bus.close().await;

    let after = at(disk.path()).await;
    assert_eq!(after.keep_with("shelf", keeper()).await.unwrap(), Some(3));
    // Something else is first this time.
    after.publish(Stream::Ase, vec![Message::new("ase.00.t.y", "whole")]).await.pop().unwrap().unwrap();
    let acks = after.publish(Stream::Ase, messages[1..].to_vec()).await;
    let acks: Vec<(u64, bool)> = acks.into_iter().map(|ack| ack.map(|ack| (ack.seq, ack.duplicate)).unwrap()).collect();
    assert_eq!(acks, [(2, true), (3, true), (5, false), (6, false), (7, false)]);
    let expected: Vec<(u64, String)> =
        (1..).zip(["kept 1", "kept 2", "kept 3", "whole", "kept 4", "kept 5", "kept 6"].map(str::to_owned)).collect();
    assert_eq!(texts(&read(&after, ">", 0, 100).await), expected);
}

#[tokio::test]
async fn a_kept_message_whose_run_cannot_be_written_was_not_published() {
    for (table, change) in [("runs", "INSERT"), ("sources", "UPDATE")] {
        let (folder, shelf) = (tempfile::tempdir().unwrap(), Arc::new(Shelf::default()));
        let bus = open(folder.path(), limits(), &shelf).await;
        let url = format!("sqlite://{}", folder.path().join("bus.db").display());
        let mut other = sqlx::SqliteConnection::connect(&url).await.unwrap();
        let fault = format!("CREATE TRIGGER fault BEFORE {change} ON {table} BEGIN SELECT RAISE(ABORT, 'disk full'); END");
        sqlx::raw_sql(sqlx::AssertSqlSafe(fault)).execute(&mut other).await.unwrap();
        let messages: Vec<Message> = [1, 2].map(|n| shelf.keep(n, "ase.00.t.x", &n.to_string())).into();
        let refused = bus.publish(Stream::Ase, messages.clone()).await;
        assert!(refused.iter().all(|ack| ack.as_ref().is_err_and(BusError::is_retryable)), "{refused:?}");
        assert!(read(&bus, ">", 0, 10).await.is_empty());
        sqlx::raw_sql("DROP TRIGGER fault").execute(&mut other).await.unwrap();
        let acks = bus.publish(Stream::Ase, messages).await;
        assert!(
            acks.iter().zip(1..).all(|(ack, seq)| ack.as_ref().is_ok_and(|ack| ack.seq == seq && !ack.duplicate)),
            "{acks:?}"
        );
        assert_eq!(read(&bus, ">", 0, 10).await.len(), 2);
    }
}

#[tokio::test]
async fn retention_drops_whole_runs_that_every_consumer_has_passed() {
    let (folder, shelf) = (tempfile::tempdir().unwrap(), Arc::new(Shelf::default()));
    let bound = limits().with_stream(Stream::Ase, StreamLimits { max_messages: 10, max_bytes: 1 << 20 });
    let bus = open(folder.path(), bound, &shelf).await;
    let publish = async |positions: std::ops::RangeInclusive<i64>| -> Vec<Result<u64, BusError>> {
        let messages = positions.map(|n| shelf.keep(n, "ase.00.t.x", &n.to_string())).collect();
        bus.publish(Stream::Ase, messages).await.into_iter().map(|ack| ack.map(|ack| ack.seq)).collect()
    };
    publish(1..=4).await;
    publish(5..=9).await;
    bus.set_consumer_position(Stream::Ase, "c", 6).await.unwrap();
    assert_eq!(publish(10..=12).await, [Ok(10), Ok(11), Ok(12)]);
    let state = bus.stream_state(Stream::Ase).await.unwrap();
    assert_eq!((state.first_seq, state.messages), (5, 8), "the run that the consumer is in the middle of stays whole");
    assert_eq!(texts(&read(&bus, ">", 0, 100).await), (5..=12).map(|n| (n, n.to_string())).collect::<Vec<_>>());
    assert_eq!(publish(13..=15).await, [Ok(13), Ok(14), Err(BusError::Full { stream: Stream::Ase })]);
    bus.set_consumer_position(Stream::Ase, "c", 14).await.unwrap();
    assert_eq!(publish(15..=15).await, [Ok(15)]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn a_reader_sees_one_stream_however_it_is_stored_and_read(
        kinds in prop::collection::vec((any::<bool>(), 0..3i64), 1..60),
        batch in 1..20usize,
        max in 1..9usize,
        from in 0..40u64,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (folder, shelf) = (tempfile::tempdir().unwrap(), Arc::new(Shelf::default()));
            let bus = open(folder.path(), limits(), &shelf).await;
            let mut position = 0;
            let messages: Vec<Message> = kinds.iter().enumerate().map(|(n, (kept, jump))| {
                let subject = format!("ase.00.t.k{}", n % 2);
                position += 1 + jump / 2;
                if *kept { shelf.keep(position, &subject, &n.to_string()) } else { Message::new(subject, n.to_string()) }
            }).collect();
            for part in messages.chunks(batch) {
                bus.publish(Stream::Ase, part.to_vec()).await;
            }
            let all: Vec<(u64, String)> = (1..).zip((0..messages.len()).map(|n| n.to_string())).collect();
            let start = usize::try_from(from.saturating_sub(1)).unwrap().min(all.len());
            assert_eq!(texts(&read(&bus, "ase.>", from, max).await), all[start..]);
            let odd: Vec<_> = all[start..].iter().filter(|(seq, _)| seq % 2 == 0).cloned().collect();
            assert_eq!(texts(&read(&bus, "ase.*.*.k1", from, max).await), odd);
        });
    }
}
