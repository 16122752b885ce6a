//! The embedded driver: conformance, and what only it promises (durability across a reopen, bounds, retention).

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aegis_bus::{
    Bucket, BucketLimits, Bus, BusError, Delivered, EmbeddedBus, EmbeddedLimits, Message, Stream, StreamLimits, conformance,
};
use aegis_model::{Clock, ManualClock, SystemClock, Timestamp};

async fn open(folder: &Path, limits: EmbeddedLimits) -> Arc<EmbeddedBus> {
    open_at(folder, limits, Arc::new(SystemClock)).await
}

async fn open_at(folder: &Path, limits: EmbeddedLimits, clock: Arc<dyn Clock>) -> Arc<EmbeddedBus> {
    EmbeddedBus::open(&folder.join("bus.db"), limits, clock).await.unwrap()
}

async fn publish(bus: &EmbeddedBus, stream: Stream, messages: Vec<Message>) -> Vec<Result<u64, BusError>> {
    bus.publish(stream, messages).await.into_iter().map(|r| r.map(|ack| ack.seq)).collect()
}

async fn read_all(bus: &EmbeddedBus, stream: Stream, from: u64) -> Vec<Delivered> {
    let mut subscription = bus.subscribe(stream, ">", from).await.unwrap();
    let mut all = Vec::new();
    loop {
        let batch = subscription.next_batch(1000, Duration::ZERO).await.unwrap();
        if batch.is_empty() {
            return all;
        }
        all.extend(batch);
    }
}

fn event(i: usize) -> Message {
    Message::new("ase.00.t.x", format!("payload {i}").into_bytes()).with_id(format!("id-{i}"))
}

fn bounded(stream: Stream, max_messages: u64, max_bytes: u64) -> EmbeddedLimits {
    EmbeddedLimits::default().with_stream(stream, StreamLimits { max_messages, max_bytes })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_driver_conforms() {
    let folder = tempfile::tempdir().unwrap();
    let opened = std::sync::atomic::AtomicUsize::new(0);
    conformance::run_all(async || {
        let n = opened.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        open(&folder.path().join(n.to_string()), EmbeddedLimits::default()).await as Arc<dyn Bus>
    })
    .await
    .unwrap();
    assert_eq!(opened.into_inner(), conformance::cases().len());
}

#[tokio::test]
async fn a_tail_too_small_to_help_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let opened = std::sync::atomic::AtomicUsize::new(0);
    conformance::run_all(async || {
        let n = opened.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let limits = EmbeddedLimits { tail_messages: 1, unread_messages: 1, commit_messages: 3, ..EmbeddedLimits::default() };
        open(&folder.path().join(n.to_string()), limits).await as Arc<dyn Bus>
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn everything_survives_a_reopen() {
    let folder = tempfile::tempdir().unwrap();
    let bus = open(folder.path(), EmbeddedLimits::default()).await;
    publish(&bus, Stream::Ase, (0..10).map(event).collect()).await;
    publish(&bus, Stream::Episodes, vec![Message::new("episode.t.a", "1"), Message::new("episode.t.a", "2")]).await;
    bus.set_consumer_position(Stream::Ase, "c", 4).await.unwrap();
    let revision = bus.kv_put(Bucket::Control, "k", "v".into()).await.unwrap();
    let identity = bus.stream_identity(Stream::Ase).await.unwrap();
    let before = (read_all(&bus, Stream::Ase, 1).await, bus.stream_state(Stream::Ase).await.unwrap());
    bus.close().await;
    assert_eq!(bus.publish(Stream::Ase, vec![event(99)]).await, [Err(BusError::Closed)]);

    let bus = open(folder.path(), EmbeddedLimits::default()).await;
    assert_eq!((read_all(&bus, Stream::Ase, 1).await, bus.stream_state(Stream::Ase).await.unwrap()), before);
    assert_eq!(bus.consumer_position(Stream::Ase, "c").await.unwrap(), 4);
    assert_eq!(bus.kv_get(Bucket::Control, "k").await.unwrap(), Some(("v".into(), revision)));
    assert!(bus.kv_put(Bucket::Control, "k", "w".into()).await.unwrap() > revision);
    assert_eq!(bus.stream_identity(Stream::Ase).await.unwrap(), identity);
    assert!(bus.publish(Stream::Ase, vec![event(3)]).await[0].as_ref().unwrap().duplicate);
    assert_eq!(publish(&bus, Stream::Ase, vec![event(10)]).await, [Ok(11)]);
    assert_eq!(publish(&bus, Stream::Episodes, vec![Message::new("episode.t.a", "3").expecting(2)]).await, [Ok(3)]);
}

#[tokio::test]
async fn whatever_one_commit_takes_together_survives_a_reopen() {
    let folder = tempfile::tempdir().unwrap();
    let limits = bounded(Stream::Ase, 6, 1 << 20);
    let bus = open(folder.path(), limits.clone()).await;
    publish(&bus, Stream::Ase, (0..5).map(event).collect()).await;
    bus.set_consumer_position(Stream::Ase, "c", 4).await.unwrap();
    let episode = |text: &'static str| Message::new("episode.t.a", text);
    // Asked for together, so that they wait for the writer together: room to make, a message to replace, a position and a value.
    let (events, episodes, alert, position, revision, more) = tokio::join!(
        publish(&bus, Stream::Ase, (5..9).map(event).collect()),
        publish(&bus, Stream::Episodes, vec![episode("1"), episode("2")]),
        publish(&bus, Stream::Alerts, vec![Message::new("alert.t.a", "x").expecting(0)]),
        bus.set_consumer_position(Stream::Ase, "d", 5),
        bus.kv_put(Bucket::Control, "k", "v".into()),
        publish(&bus, Stream::Ase, vec![event(9)]),
    );
    assert_eq!((events, more), (vec![Ok(6), Ok(7), Ok(8), Ok(9)], vec![Ok(10)]));
    assert_eq!((episodes, alert, position), (vec![Ok(1), Ok(2)], vec![Ok(1)], Ok(())));
    assert!(bus.stream_state(Stream::Ase).await.unwrap().first_seq > 1, "room was made");
    let mut before = Vec::new();
    for stream in Stream::ALL {
        before.push((bus.stream_state(stream).await.unwrap(), read_all(&bus, stream, 0).await));
    }
    bus.close().await;

    let bus = open(folder.path(), limits).await;
    for (stream, before) in Stream::ALL.into_iter().zip(before) {
        assert_eq!((bus.stream_state(stream).await.unwrap(), read_all(&bus, stream, 0).await), before, "{stream}");
    }
    assert_eq!(bus.consumer_position(Stream::Ase, "d").await.unwrap(), 5);
    assert_eq!(bus.kv_get(Bucket::Control, "k").await.unwrap(), Some(("v".into(), revision.unwrap())));
    assert_eq!(publish(&bus, Stream::Episodes, vec![episode("3").expecting(2)]).await, [Ok(3)]);
    // Consumer `c` still holds back what it has not passed.
    let full = Err(BusError::Full { stream: Stream::Ase });
    assert_eq!(publish(&bus, Stream::Ase, vec![event(9), event(10)]).await, [Ok(10), full]);
}

#[tokio::test]
async fn a_full_stream_refuses_until_every_consumer_has_passed() {
    let folder = tempfile::tempdir().unwrap();
    let bus = open(folder.path(), bounded(Stream::Ase, 10, 1 << 20)).await;
    let results = publish(&bus, Stream::Ase, (0..12).map(event).collect()).await;
    assert_eq!(results[9], Ok(10));
    assert_eq!(results[10..], [Err(BusError::Full { stream: Stream::Ase }), Err(BusError::Full { stream: Stream::Ase })]);
    assert_eq!(
        publish(&bus, Stream::Ase, vec![event(10)]).await,
        [Err(BusError::Full { stream: Stream::Ase })],
        "no consumer: nothing is dropped"
    );

    bus.set_consumer_position(Stream::Ase, "fast", 10).await.unwrap();
    bus.set_consumer_position(Stream::Ase, "slow", 0).await.unwrap();
    assert!(publish(&bus, Stream::Ase, vec![event(10)]).await[0].is_err(), "the slow consumer has passed nothing");
    assert!(bus.publish(Stream::Ase, vec![event(3)]).await[0].as_ref().unwrap().duplicate, "a duplicate needs no room");

    bus.set_consumer_position(Stream::Ase, "slow", 4).await.unwrap();
    assert_eq!(publish(&bus, Stream::Ase, (10..12).map(event).collect()).await, [Ok(11), Ok(12)]);
    let left = read_all(&bus, Stream::Ase, 1).await;
    assert!(left.iter().map(|d| d.seq).eq(left[0].seq..=12) && left[0].seq <= 5, "the slow consumer's messages are there");
    let state = bus.stream_state(Stream::Ase).await.unwrap();
    assert_eq!((state.first_seq, state.messages, state.dropped_total), (left[0].seq, left.len() as u64, 0));

    // What was dropped is still known by its id.
    assert_eq!(bus.publish(Stream::Ase, vec![event(0)]).await[0].as_ref().unwrap().seq, 1);
    bus.close().await;
    let bus = open(folder.path(), bounded(Stream::Ase, 10, 1 << 20)).await;
    assert_eq!(bus.stream_state(Stream::Ase).await.unwrap(), state);
    assert_eq!(read_all(&bus, Stream::Ase, 1).await.len(), left.len());
}

#[tokio::test]
async fn bytes_are_a_bound_too() {
    let folder = tempfile::tempdir().unwrap();
    let bus = open(folder.path(), bounded(Stream::Ase, 1000, 10_000)).await;
    let large = |n: usize| Message::new("ase.00.t.x", vec![b'x'; n]);
    assert!(
        matches!(publish(&bus, Stream::Ase, vec![large(10_000)]).await[0], Err(BusError::TooLarge { .. })),
        "it would never fit"
    );
    assert_eq!(
        publish(&bus, Stream::Ase, vec![large(9000), large(5000), large(1)]).await[1..].iter().filter(|r| r.is_err()).count(),
        2
    );
    bus.set_consumer_position(Stream::Ase, "c", 1).await.unwrap();
    assert_eq!(publish(&bus, Stream::Ase, vec![large(5000)]).await, [Ok(2)]);
    let state = bus.stream_state(Stream::Ase).await.unwrap();
    assert_eq!((state.first_seq, state.messages), (2, 1));
    assert!(state.bytes <= 10_000);
}

#[tokio::test]
async fn dead_letters_drop_the_oldest_and_count_them() {
    let folder = tempfile::tempdir().unwrap();
    let bus = open(folder.path(), bounded(Stream::Dlq, 10, 1 << 20)).await;
    let letters = (0..25).map(|i: i32| Message::new("dlq.00", i.to_string())).collect();
    assert!(publish(&bus, Stream::Dlq, letters).await.into_iter().eq((1..=25).map(Ok)));
    let left = read_all(&bus, Stream::Dlq, 1).await;
    assert_eq!(left.last().unwrap().payload, "24");
    let state = bus.stream_state(Stream::Dlq).await.unwrap();
    assert!(state.messages <= 10 && state.dropped_total + state.messages == 25, "{state:?}");
    assert_eq!(left.len() as u64, state.messages);
}

#[tokio::test]
async fn message_ids_are_forgotten_after_their_message_and_the_window() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::new(Timestamp::from_micros(1_000_000_000_000)));
    let limits = EmbeddedLimits { dedup_window_s: 60, ..bounded(Stream::Ase, 4, 1 << 20) };
    let bus = open_at(folder.path(), limits, clock.clone()).await;
    publish(&bus, Stream::Ase, (0..4).map(event).collect()).await;
    bus.set_consumer_position(Stream::Ase, "c", 2).await.unwrap();
    assert_eq!(publish(&bus, Stream::Ase, vec![event(4)]).await, [Ok(5)], "message 1 or more was dropped");
    clock.advance_seconds(59);
    assert!(bus.publish(Stream::Ase, vec![event(0)]).await[0].as_ref().unwrap().duplicate, "within the window");
    clock.advance_seconds(2);
    // This commit forgets; the next one no longer knows.
    bus.kv_put(Bucket::Control, "k", "v".into()).await.unwrap();
    bus.set_consumer_position(Stream::Ase, "c", 5).await.unwrap();
    assert!(!bus.publish(Stream::Ase, vec![event(0)]).await[0].as_ref().unwrap().duplicate, "message and window are gone");
}

#[tokio::test]
async fn old_episodes_make_room_though_nobody_has_read_them() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::new(Timestamp::from_micros(1_767_225_600_000_000)));
    let bus = open_at(folder.path(), bounded(Stream::Episodes, 3, 1 << 20), clock.clone()).await;
    let episode = |name: &str, n: i32| vec![Message::new(format!("episode.t.{name}"), n.to_string())];
    for name in ["a", "b"] {
        assert!(publish(&bus, Stream::Episodes, episode(name, 1)).await[0].is_ok());
    }
    clock.advance_seconds(20 * 24 * 3600);
    assert_eq!(publish(&bus, Stream::Episodes, episode("c", 1)).await, [Ok(3)]);
    // Written again, it is not old.
    assert_eq!(publish(&bus, Stream::Episodes, episode("a", 2)).await, [Ok(4)]);
    assert_eq!(publish(&bus, Stream::Episodes, episode("d", 1)).await, [Err(BusError::Full { stream: Stream::Episodes })]);
    clock.advance_seconds(11 * 24 * 3600);
    assert_eq!(publish(&bus, Stream::Episodes, episode("d", 1)).await, [Ok(5)], "what was not written for a month makes room");
    assert_eq!(publish(&bus, Stream::Episodes, episode("e", 1)).await, [Err(BusError::Full { stream: Stream::Episodes })]);
    let left: Vec<_> = read_all(&bus, Stream::Episodes, 1).await.into_iter().map(|d| d.subject).collect();
    assert_eq!(left, ["episode.t.c", "episode.t.a", "episode.t.d"]);
    assert_eq!(bus.stream_state(Stream::Episodes).await.unwrap().messages, 3);
}

#[tokio::test]
async fn the_oldest_checkpoints_make_room_once_consumed_and_accounts_stay_right() {
    let folder = tempfile::tempdir().unwrap();
    let bus = open(folder.path(), bounded(Stream::Episodes, 3, 1 << 20)).await;
    let episode = |name: &str, n: i32| Message::new(format!("episode.t.{name}"), n.to_string());
    publish(&bus, Stream::Episodes, vec![episode("a", 1), episode("b", 1), episode("c", 1), episode("a", 2)]).await;
    assert!(publish(&bus, Stream::Episodes, vec![episode("d", 1)]).await[0].is_err());
    assert_eq!(publish(&bus, Stream::Episodes, vec![episode("b", 2)]).await, [Ok(5)], "replacing needs no room");
    bus.set_consumer_position(Stream::Episodes, "control", 5).await.unwrap();
    assert_eq!(publish(&bus, Stream::Episodes, vec![episode("d", 1), episode("c", 2)]).await, [Ok(6), Ok(7)]);
    let left: Vec<_> = read_all(&bus, Stream::Episodes, 1).await.into_iter().map(|d| d.subject).collect();
    let state = bus.stream_state(Stream::Episodes).await.unwrap();
    assert_eq!(state.messages, left.len() as u64, "{left:?}");
    // A subject whose message retention dropped is empty again.
    let gone = ["a", "b"].into_iter().find(|n| !left.contains(&format!("episode.t.{n}"))).unwrap();
    bus.set_consumer_position(Stream::Episodes, "control", 7).await.unwrap();
    assert!(publish(&bus, Stream::Episodes, vec![episode(gone, 3).expecting(0)]).await[0].is_ok());
}

#[tokio::test]
async fn buckets_are_bounded_and_old_trust_ends() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::new(Timestamp::from_micros(1_000_000_000_000)));
    let limits = BucketLimits { max_keys: 2, max_bytes: 100, max_age_s: Some(60) };
    let bus = open_at(folder.path(), EmbeddedLimits::default().with_bucket(Bucket::Trust, limits), clock.clone()).await;
    bus.kv_put(Bucket::Trust, "a", "1".into()).await.unwrap();
    bus.kv_put(Bucket::Trust, "b", "1".into()).await.unwrap();
    let full = Err(BusError::BucketFull { bucket: Bucket::Trust });
    assert_eq!(bus.kv_put(Bucket::Trust, "c", "1".into()).await, full);
    assert_eq!(bus.kv_put(Bucket::Trust, "a", vec![0; 100].into()).await, full);
    clock.advance_seconds(40);
    bus.kv_put(Bucket::Trust, "b", "2".into()).await.unwrap();
    clock.advance_seconds(40);
    bus.kv_put(Bucket::Trust, "c", "1".into()).await.unwrap();
    let keys: Vec<_> = bus.kv_all(Bucket::Trust, ">").await.unwrap().into_iter().map(|e| e.0).collect();
    assert_eq!(keys, ["b", "c"], "the one that was not written for a minute ended");
    bus.close().await;
    let bus = open(folder.path(), EmbeddedLimits::default()).await;
    assert_eq!(bus.kv_all(Bucket::Trust, ">").await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_second_process_cannot_open_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let bus = open(folder.path(), EmbeddedLimits::default()).await;
    let second = EmbeddedBus::open(&folder.path().join("bus.db"), EmbeddedLimits::default(), Arc::new(SystemClock)).await;
    assert!(matches!(second, Err(BusError::InUse { .. })), "{second:?}");
    bus.close().await;
    open(folder.path(), EmbeddedLimits::default()).await;
}

#[tokio::test]
async fn a_file_of_an_earlier_version_is_taken_over_with_what_it_holds() {
    use sqlx::Connection;
    for as_it_was in [
        "DROP TABLE runs; DROP TABLE sources; PRAGMA user_version = 1",
        "ALTER TABLE runs DROP COLUMN last_id; PRAGMA user_version = 2",
        "PRAGMA user_version = 3",
    ] {
        let folder = tempfile::tempdir().unwrap();
        let bus = open(folder.path(), EmbeddedLimits::default()).await;
        publish(&bus, Stream::Ase, (0..3).map(event).collect()).await;
        bus.close().await;
        let url = format!("sqlite://{}", folder.path().join("bus.db").display());
        let mut conn = sqlx::SqliteConnection::connect(&url).await.unwrap();
        sqlx::raw_sql(as_it_was).execute(&mut conn).await.unwrap();
        conn.close().await.unwrap();
        let bus = open(folder.path(), EmbeddedLimits::default()).await;
        assert_eq!(publish(&bus, Stream::Ase, vec![event(3)]).await, [Ok(4)]);
        assert_eq!(read_all(&bus, Stream::Ase, 1).await.len(), 4);
    }
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    use sqlx::Connection;
    let folder = tempfile::tempdir().unwrap();
    open(folder.path(), EmbeddedLimits::default()).await.close().await;
    let url = format!("sqlite://{}", folder.path().join("bus.db").display());
    let mut conn = sqlx::SqliteConnection::connect(&url).await.unwrap();
    sqlx::query("PRAGMA user_version = 99").execute(&mut conn).await.unwrap();
    conn.close().await.unwrap();
    let opened = EmbeddedBus::open(&folder.path().join("bus.db"), EmbeddedLimits::default(), Arc::new(SystemClock)).await;
    assert!(matches!(opened, Err(BusError::SchemaTooNew { found: 99, known: 4, .. })), "{opened:?}");
}

#[tokio::test]
async fn a_file_that_cannot_be_written_refuses_and_recovers() {
    // A publish is several statements: whichever fails, nothing of it may stay.
    for (table, change) in [("messages", "INSERT"), ("msg_ids", "INSERT"), ("subjects", "INSERT"), ("streams", "UPDATE")] {
        refuses_and_recovers(table, change).await;
    }
}

async fn refuses_and_recovers(table: &str, change: &str) {
    use sqlx::Connection;
    let folder = tempfile::tempdir().unwrap();
    let bus = open(folder.path(), EmbeddedLimits::default()).await;
    publish(&bus, Stream::Ase, vec![event(0)]).await;
    let url = format!("sqlite://{}", folder.path().join("bus.db").display());
    let mut conn = sqlx::SqliteConnection::connect(&url).await.unwrap();
    let trigger = format!("CREATE TRIGGER broken BEFORE {change} ON {table} BEGIN SELECT raise(ABORT, 'disk is broken'); END");
    sqlx::query(sqlx::AssertSqlSafe(trigger)).execute(&mut conn).await.unwrap();
    let refused = bus.publish(Stream::Ase, vec![event(1), Message::new("nonsense", "x")]).await;
    assert!(matches!(&refused[0], Err(BusError::Unavailable { reason }) if reason.contains("disk is broken")), "{refused:?}");
    assert!(matches!(refused[1], Err(BusError::Invalid { .. })), "{refused:?}");
    assert_eq!(bus.last_seq(Stream::Ase).await.unwrap(), 1);
    assert!(matches!(bus.publish(Stream::Ase, vec![event(1)]).await[0], Err(BusError::Unavailable { .. })));
    sqlx::query("DROP TRIGGER broken").execute(&mut conn).await.unwrap();
    assert_eq!(
        publish(&bus, Stream::Ase, vec![event(1), event(0)]).await,
        [Ok(2), Ok(1)],
        "nothing of the failed commit was kept in memory"
    );
    assert_eq!(read_all(&bus, Stream::Ase, 1).await.len(), 2);
}

#[tokio::test]
async fn a_large_publish_goes_in_pieces_and_keeps_its_order() {
    let folder = tempfile::tempdir().unwrap();
    let limits = EmbeddedLimits { queue_bytes: 4096, commit_messages: 50, ..EmbeddedLimits::default() };
    let bus = open(folder.path(), limits).await;
    let results = publish(&bus, Stream::Ase, (0..1000).map(event).collect()).await;
    assert!(results.into_iter().eq((1..=1000).map(Ok)));
    let big = (0..40).map(|_| Message::new("ase.00.t.big", vec![7; 1 << 20])).collect();
    assert!(publish(&bus, Stream::Ase, big).await.into_iter().eq((1001..=1040).map(Ok)));
    let payload_bytes: usize = read_all(&bus, Stream::Ase, 1001).await.iter().map(|d| d.payload.len()).sum();
    assert_eq!(payload_bytes, 40 << 20);
}

#[tokio::test]
async fn the_files_are_their_owner_s_alone() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bus.db");
    // A file of an earlier start, with the mode of a careless umask.
    std::fs::write(&path, "").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let bus = open(folder.path(), EmbeddedLimits::default()).await;
    publish(&bus, Stream::Ase, vec![event(0)]).await;
    let files: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|f| f.unwrap()).collect();
    assert_eq!(files.len(), 4, "{files:?}");
    for file in files {
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{file:?}");
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_opened_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bus.db");
    std::fs::write(&path, "this is no database, and long enough to be looked at: ".repeat(20)).unwrap();
    let opened = EmbeddedBus::open(&path, EmbeddedLimits::default(), Arc::new(SystemClock)).await;
    let message = opened.err().unwrap().to_string();
    assert!(message.contains(path.to_str().unwrap()) && message.contains("not a database"), "{message}");
}
