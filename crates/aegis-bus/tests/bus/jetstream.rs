//! The JetStream driver against real servers: Debian's and the current one, both installed by `scripts/setup.sh`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::nats::{Server, servers, slow_way};
use aegis_bus::definitions::{self, Change, Settings};
use aegis_bus::{
    Bucket, Bus, BusError, Feature, JetStreamBus, JetStreamOptions, Message, Place, Servers, Stream, Subscription, conformance,
};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::time::Instant;

fn small() -> Settings {
    let max_bytes = [("ASE", 64), ("APPROVALS", 8), ("ALERTS", 8), ("EPISODES", 8), ("CKPT", 8), ("DLQ", 8)];
    let buckets = ["KV_containment", "KV_control", "KV_leases", "KV_trust"].map(|name| (name, 8));
    let max_bytes = max_bytes.into_iter().chain(buckets).map(|(name, mib)| (name.to_owned(), mib << 20)).collect();
    Settings { max_bytes, ..Settings::default() }
}

/// How long is waited for what comes: on a busy machine that may be long, and what is there ends the wait at once.
const PATIENCE: Duration = Duration::from_secs(60);

async fn connect(server: &Server) -> Arc<JetStreamBus> {
    JetStreamBus::connect(&JetStreamOptions::new(server.url())).await.unwrap()
}

/// A bus with empty streams on a new server.
async fn fresh(server: &Server) -> Arc<JetStreamBus> {
    let bus = connect(server).await;
    bus.apply_streams(&definitions::wanted(&small()).unwrap(), &[]).await.unwrap();
    bus
}

async fn publish_one(bus: &JetStreamBus, stream: Stream, message: Message) -> Result<u64, BusError> {
    bus.publish(stream, vec![message]).await.pop().unwrap().map(|ack| ack.seq)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_keeps_every_promise_of_a_bus() {
    for binary in servers() {
        let server = Server::start(&binary);
        for (name, case) in conformance::cases() {
            let bus = connect(&server).await;
            for stream in definitions::wanted(&small()).unwrap() {
                let _none = async_nats::jetstream::new(bus.client()).delete_stream(&stream.name).await;
            }
            bus.apply_streams(&definitions::wanted(&small()).unwrap(), &[]).await.unwrap();
            case(bus as Arc<dyn Bus>).await.unwrap_or_else(|violation| panic!("{}: {name}: {violation}", binary.display()));
        }
    }
}

/// The version that a server's program says it is.
fn version_of(binary: &Path) -> String {
    let said = std::process::Command::new(binary).arg("--version").output().unwrap().stdout;
    String::from_utf8(said).unwrap().trim().trim_start_matches("nats-server: v").to_owned()
}

#[tokio::test]
async fn what_a_server_is_and_has_is_found_when_it_is_reached() {
    for (binary, has) in servers().iter().zip([Vec::new(), Feature::ALL.to_vec()]) {
        let mut server = Server::start(binary);
        server.kill();
        let bus = connect(&server).await;
        assert_eq!(bus.servers(), None, "nobody answers yet");
        server.start_again();
        let found = bus.find_servers().await.unwrap();
        assert_eq!(found.version.to_string(), version_of(binary));
        assert_eq!((found.newest, found.count, found.api_level.is_some()), (found.version, 1, !has.is_empty()));
        assert_eq!(found.features, has);
        assert_eq!(bus.servers(), Some(found));
    }
}

#[tokio::test]
async fn of_a_mixed_cluster_the_least_counts_and_it_is_looked_at_again_behind_a_reconnect() {
    let [debian, current] = <[PathBuf; 2]>::try_from(servers()).unwrap();
    let (old_version, new_version) = (version_of(&debian), version_of(&current));
    let [mut old, mut new] = Server::start_cluster([debian.as_path(), current.as_path()]);
    let bus = connect(&new).await;
    let found = bus.find_servers().await.unwrap();
    assert_eq!((found.version.to_string(), found.newest.to_string(), found.count), (old_version.clone(), new_version.clone(), 2));
    assert!(found.features.is_empty(), "{found}");

    new.kill();
    assert!(alone(&bus, &old_version).await.features.is_empty());
    new.start_again();
    old.kill();
    assert_eq!(alone(&bus, &new_version).await.features, Feature::ALL);
}

/// What is found once one server of this version is all there is.
async fn alone(bus: &JetStreamBus, version: &str) -> Servers {
    let is_alone = |found: &Servers| found.count == 1 && found.version == found.newest && found.version.to_string() == version;
    eventually(async || bus.servers().filter(&is_alone)).await
}

#[tokio::test]
async fn what_nobody_needs_any_more_is_gone_where_the_servers_know_that() {
    for binary in servers() {
        let server = Server::start(&binary);
        let bus = fresh(&server).await;
        let knows = bus.find_servers().await.unwrap().have(Feature::MessageTtl);
        let message = |name: &str| Message::new(format!("approval.t.{name}"), "x");
        let batch = vec![
            message("short").with_ttl(Duration::from_millis(1)),
            message("long").with_ttl(Duration::from_secs(3600)),
            message("plain"),
        ];
        assert!(bus.publish(Stream::Approvals, batch).await.iter().all(Result::is_ok));
        let stream = async_nats::jetstream::new(bus.client()).get_stream("APPROVALS").await.unwrap();
        let sent = stream.get_raw_message(2).await.unwrap().headers.get("Nats-TTL").map(|ttl| ttl.as_str().to_owned());
        assert_eq!(sent, knows.then(|| "3600".to_owned()), "{}", binary.display());
        let left: &[u64] = if knows { &[2, 3] } else { &[1, 2, 3] };
        let has_ended = async || {
            let messages = bus.stream_state(Stream::Approvals).await.unwrap().messages;
            (messages == left.len() as u64).then_some(())
        };
        eventually(has_ended).await;
        let mut subscription = bus.subscribe(Stream::Approvals, "approval.>", 1).await.unwrap();
        let mut read = Vec::new();
        while read.len() < left.len() {
            let batch = subscription.next_batch(10, PATIENCE).await.unwrap();
            assert!(!batch.is_empty(), "{read:?} were read");
            read.extend(batch.iter().map(|message| message.seq));
        }
        assert_eq!(read, left);
    }
}

#[tokio::test]
async fn a_stream_that_is_older_than_what_its_server_knows_costs_one_refusal() {
    let server = Server::start(&servers()[1]);
    let bus = connect(&server).await;
    assert!(bus.find_servers().await.unwrap().have(Feature::MessageTtl));
    let streams = async_nats::jetstream::new(bus.client());
    let mut made = async_nats::jetstream::stream::Config {
        name: "APPROVALS".to_owned(),
        subjects: vec!["approval.>".to_owned()],
        ..Default::default()
    };
    streams.create_stream(made.clone()).await.unwrap();
    let batch = || ["a", "b"].map(|name| Message::new(format!("approval.t.{name}"), "x").with_id(name)).to_vec();
    let with_ttl = || batch().into_iter().map(|message| message.with_ttl(Duration::from_secs(60))).collect::<Vec<_>>();
    let refused = bus.publish(Stream::Approvals, with_ttl()).await;
    assert_eq!(refused, vec![Err(BusError::NoTtl { stream: Stream::Approvals }); 2]);
    assert!(refused.iter().all(|result| result.as_ref().is_err_and(BusError::is_retryable)));
    let taken = bus.publish(Stream::Approvals, with_ttl()).await;
    assert!(taken.iter().all(|result| result.as_ref().is_ok_and(|ack| !ack.duplicate)), "{taken:?}");

    // Another process, once the stream was made for it.
    made.allow_message_ttl = true;
    streams.update_stream(made).await.unwrap();
    let other = connect(&server).await;
    other.find_servers().await.unwrap();
    let message = Message::new("approval.t.c", "x").with_ttl(Duration::from_secs(60));
    assert_eq!(publish_one(&other, Stream::Approvals, message).await.unwrap(), 3);
    let stream = streams.get_stream("APPROVALS").await.unwrap();
    for (seq, has_ttl) in [(1, false), (2, false), (3, true)] {
        let headers = stream.get_raw_message(seq).await.unwrap().headers;
        assert_eq!(headers.get("Nats-TTL").is_some(), has_ttl, "message {seq}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_is_as_large_as_what_waits() {
    for binary in servers() {
        let server = Server::start(&binary);
        let bus = fresh(&server).await;
        let messages = (0..2000).map(|n| Message::new("ase.00.t.x", n.to_string())).collect();
        assert!(bus.publish(Stream::Ase, messages).await.iter().all(Result::is_ok));
        let mut subscription = bus.subscribe(Stream::Ase, "ase.>", 1).await.unwrap();
        let mut read = subscription.next_batch(1, PATIENCE).await.unwrap().len();
        let mut largest = 0;
        while read < 2000 {
            // What the server sends meanwhile waits in the client. How much that is decides nothing below: the scheduler's budget is 128.
            tokio::time::sleep(Duration::from_millis(300)).await;
            let batch = subscription.next_batch(2048, PATIENCE).await.unwrap();
            assert!(!batch.is_empty(), "{read} were read");
            read += batch.len();
            largest = largest.max(batch.len());
        }
        assert!(largest > 256, "of 2000 messages that waited, no batch had more than {largest}");
    }
}

#[tokio::test]
async fn a_plan_names_every_difference_and_nothing_is_lost_unless_told() {
    for binary in servers() {
        let server = Server::start(&binary);
        let bus = connect(&server).await;
        let wanted = definitions::wanted(&small()).unwrap();
        let plan = bus.plan_streams(&wanted).await.unwrap();
        assert!(plan.iter().all(|planned| planned.change == Change::Create) && plan.len() == 10);
        bus.apply_streams(&wanted, &[]).await.unwrap();
        let plan = bus.plan_streams(&wanted).await.unwrap();
        assert!(plan.iter().all(|planned| planned.change == Change::None), "{plan:?}");

        publish_one(&bus, Stream::Ase, Message::new("ase.00.t.x", vec![b'x'; 100_000])).await.unwrap();
        let mut settings = small();
        settings.max_bytes.insert("ASE".to_owned(), 50_000);
        settings.max_age_s.insert("ALERTS".to_owned(), 60);
        let tighter = definitions::wanted(&settings).unwrap();
        let plan = bus.plan_streams(&tighter).await.unwrap();
        let changed: Vec<&str> =
            plan.iter().filter(|planned| planned.change != Change::None).map(|planned| planned.name.as_str()).collect();
        assert_eq!(changed, ["ASE", "ALERTS"]);
        assert_eq!((plan[0].losses().len(), plan[2].losses().len()), (1, 0), "an empty stream has nothing to lose: {plan:?}");
        for may_lose in [vec![], vec!["ALERTS".to_owned()]] {
            let refused = bus.apply_streams(&tighter, &may_lose).await.unwrap_err();
            assert!(refused.to_string().contains("ASE would lose"), "{refused}");
            assert_eq!(bus.stream_state(Stream::Ase).await.unwrap().messages, 1);
            assert_eq!(bus.plan_streams(&tighter).await.unwrap(), plan, "nothing was done");
        }
        // Wider again: nothing to lose.
        bus.apply_streams(&wanted, &[]).await.unwrap();
        bus.apply_streams(&tighter, &["ASE".to_owned()]).await.unwrap();
        assert!(bus.plan_streams(&tighter).await.unwrap().iter().all(|planned| planned.change == Change::None));
    }
}

#[tokio::test]
async fn a_stream_that_is_full_refuses_and_keeps_the_order() {
    for binary in servers() {
        let server = Server::start(&binary);
        let bus = fresh(&server).await;
        let mut settings = small();
        settings.max_bytes.insert("ASE".to_owned(), 200_000);
        bus.apply_streams(&definitions::wanted(&settings).unwrap(), &[]).await.unwrap();
        let message = |n: usize| Message::new("ase.00.t.x", vec![b'x'; 48_000]).with_id(n.to_string());
        let results = bus.publish(Stream::Ase, (0..6).map(message).collect()).await;
        let taken = results.iter().take_while(|result| result.is_ok()).count();
        assert!((2..=4).contains(&taken), "{results:?}");
        assert!(results[taken..].iter().all(|result| *result == Err(BusError::Full { stream: Stream::Ase })), "{results:?}");
        // What every consumer has passed makes room; what one has not, stays.
        bus.set_consumer_position(Stream::Ase, "slow", 1).await.unwrap();
        bus.set_consumer_position(Stream::Ase, "quick", 2).await.unwrap();
        assert_eq!(bus.stream_state(Stream::Ase).await.unwrap().first_seq, 2);
        let again = bus.publish(Stream::Ase, (0..6).map(message).collect()).await;
        assert!(
            again[..taken].iter().all(|ack| ack.as_ref().unwrap().duplicate)
                && again[taken].as_ref().is_ok_and(|ack| !ack.duplicate)
        );
    }
}

#[tokio::test]
async fn what_is_acknowledged_outlives_the_server_and_a_reader_goes_on() {
    for binary in servers() {
        let mut server = Server::start(&binary);
        let bus = fresh(&server).await;
        let mut subscription = bus.subscribe(Stream::Ase, "ase.>", 1).await.unwrap();
        let mut watch = bus.kv_watch(Bucket::Containment, ">").await.unwrap();
        bus.kv_put(Bucket::Containment, "t.a", Bytes::from_static(b"1")).await.unwrap();
        assert_eq!(watch.next().await.unwrap().1, "1");
        for n in 0..10u8 {
            publish_one(&bus, Stream::Ase, Message::new("ase.00.t.x", vec![n])).await.unwrap();
        }
        let identity = bus.stream_identity(Stream::Ase).await.unwrap();
        let first = subscription.next_batch(5, PATIENCE).await.unwrap();
        assert_eq!(first[0].seq, 1);

        server.kill();
        let down = publish_one(&bus, Stream::Ase, Message::new("ase.00.t.x", "down").with_id("down")).await;
        assert!(down.as_ref().is_err_and(BusError::is_retryable), "{down:?}");
        assert!(bus.last_seq(Stream::Ase).await.is_err_and(|error| error.is_retryable()));
        server.start_again();

        let seq =
            eventually(async || publish_one(&bus, Stream::Ase, Message::new("ase.00.t.x", "up").with_id("down")).await.ok())
                .await;
        assert!((11..=12).contains(&seq));
        let mut seqs: Vec<u64> = first.iter().map(|message| message.seq).collect();
        while seqs.last() != Some(&seq) {
            match subscription.next_batch(100, Duration::from_secs(1)).await {
                Ok(batch) => seqs.extend(batch.iter().map(|message| message.seq)),
                Err(error) => assert!(error.is_retryable(), "{error}"),
            }
        }
        assert_eq!(seqs, (1..=seq).collect::<Vec<_>>(), "each once, in order");
        assert_eq!(bus.stream_identity(Stream::Ase).await.unwrap(), identity);
        bus.kv_put(Bucket::Containment, "t.a", Bytes::from_static(b"2")).await.unwrap();
        // A watch that was interrupted begins again with what stands.
        let newest = async {
            loop {
                let (key, value, _) = watch.next().await.unwrap();
                assert_eq!(key, "t.a");
                if value == "2" {
                    break;
                }
            }
        };
        tokio::time::timeout(PATIENCE, newest).await.unwrap();
    }
}

#[tokio::test]
async fn a_server_that_hangs_costs_one_wait_and_not_one_for_each_message() {
    let server = Server::start(&servers()[1]);
    let bus = fresh(&server).await;
    let messages = || (0..2000).map(|n: i32| Message::new("ase.00.t.x", "x").with_id(n.to_string())).collect::<Vec<_>>();
    server.signal("STOP");
    // Far more than one wait of five seconds, far less than one for each message.
    let refused = tokio::time::timeout(Duration::from_secs(300), bus.publish(Stream::Ase, messages())).await.unwrap();
    assert!(refused.len() == 2000 && refused.iter().all(|result| result.as_ref().is_err_and(BusError::is_retryable)));
    server.signal("CONT");
    eventually(async || bus.publish(Stream::Ase, messages()).await.iter().all(Result::is_ok).then_some(())).await;
    assert_eq!(bus.stream_state(Stream::Ase).await.unwrap().messages, 2000, "each once");
}

#[tokio::test]
async fn what_is_under_way_to_a_server_that_hangs_is_acknowledged_by_nobody() {
    for binary in servers() {
        let server = Server::start(&binary);
        let bus = fresh(&server).await;
        let messages = |from: i32| (from..from + 100).map(|n| Message::new("ase.00.t.x", "x").with_id(n.to_string())).collect();
        server.signal("STOP");
        let mut under_way = Vec::new();
        for from in [0, 100, 200] {
            under_way.push(bus.begin_publish(Stream::Ase, messages(from)).await);
        }
        for acks in under_way.into_iter().rev() {
            let results = acks.await;
            assert!(results.len() == 100 && results.iter().all(|result| result.as_ref().is_err_and(BusError::is_retryable)));
        }
        server.signal("CONT");
        for from in [0, 100, 200] {
            eventually(async || bus.publish(Stream::Ase, messages(from)).await.iter().all(Result::is_ok).then_some(())).await;
        }
        assert_eq!(bus.stream_state(Stream::Ase).await.unwrap().messages, 300, "each once");
    }
}

#[tokio::test]
async fn an_answer_that_is_not_of_the_stream_acknowledges_nothing() {
    for binary in servers() {
        let server = Server::start(&binary);
        let bus = connect(&server).await;
        // Somebody who listens and answers, where there is no stream.
        let client = bus.client();
        let mut asked = client.subscribe("ase.>").await.unwrap();
        let answering = tokio::spawn(async move {
            for answer in ["", "{}", "+OK"] {
                let reply_to = asked.next().await.unwrap().reply.unwrap();
                client.publish(reply_to, answer.into()).await.unwrap();
            }
        });
        for _ in 0..3 {
            let refused = publish_one(&bus, Stream::Ase, Message::new("ase.00.t.x", "x")).await.unwrap_err();
            assert!(refused.is_retryable(), "{refused}");
        }
        answering.await.unwrap();
        // Another stream that takes its subjects.
        let other = async_nats::jetstream::stream::Config {
            name: "OTHER".to_owned(),
            subjects: vec!["ase.>".into()],
            ..Default::default()
        };
        async_nats::jetstream::new(bus.client()).create_stream(other).await.unwrap();
        let refused = publish_one(&bus, Stream::Ase, Message::new("ase.00.t.x", "x")).await.unwrap_err();
        assert!(refused.is_retryable() && refused.to_string().contains("another stream than ASE"), "{refused}");
    }
}

/// A reader that has read everything, the position it remembered, and a place it described.
async fn having_read(bus: &JetStreamBus) -> (Box<dyn Subscription>, Place) {
    let mut subscription = bus.subscribe(Stream::Ase, ">", 1).await.unwrap();
    for n in 0..10u8 {
        publish_one(bus, Stream::Ase, Message::new("ase.00.t.x", vec![n])).await.unwrap();
    }
    let (mut read, last) = (0, bus.last_seq(Stream::Ase).await.unwrap());
    while read < last {
        read = subscription.next_batch(100, PATIENCE).await.unwrap().last().unwrap().seq;
    }
    bus.set_consumer_position(Stream::Ase, "reader", last).await.unwrap();
    assert_eq!(bus.consumer_position(Stream::Ase, "reader").await.unwrap(), last);
    let place = bus.place(Stream::Ase, last).await.unwrap();
    assert!(bus.is_still(Stream::Ase, &place).await.unwrap());
    (subscription, place)
}

async fn assert_rewound(bus: &JetStreamBus, mut subscription: Box<dyn Subscription>, place: &Place) {
    let begun = tokio::time::Instant::now();
    let error = loop {
        assert!(begun.elapsed() < PATIENCE, "the reader waits behind a head that is gone");
        match subscription.next_batch(100, Duration::from_secs(1)).await {
            Ok(batch) => assert!(batch.is_empty(), "it must not go on by number: {batch:?}"),
            Err(error) if error.is_retryable() => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(error, BusError::Rewound { .. }), "{error}");
    assert_eq!(subscription.next_batch(100, Duration::from_secs(1)).await.unwrap_err(), error, "and stays so");
    assert!(!bus.is_still(Stream::Ase, place).await.unwrap());
    assert_eq!(bus.consumer_position(Stream::Ase, "reader").await.unwrap(), 0, "the position was about another stream");
}

#[tokio::test]
async fn a_stream_that_was_made_anew_is_not_read_on_by_number() {
    for binary in servers() {
        for grown in [false, true] {
            let server = Server::start(&binary);
            let bus = fresh(&server).await;
            let (subscription, place) = having_read(&bus).await;
            async_nats::jetstream::new(bus.client()).delete_stream("ASE").await.unwrap();
            bus.apply_streams(&definitions::wanted(&small()).unwrap(), &[]).await.unwrap();
            for n in 0..if grown { 20u8 } else { 3 } {
                publish_one(&bus, Stream::Ase, Message::new("ase.00.t.x", vec![n])).await.unwrap();
            }
            assert_rewound(&bus, subscription, &place).await;
        }
    }
}

#[tokio::test]
async fn a_stream_that_lost_its_end_is_not_read_on_by_number() {
    for binary in servers() {
        for grown in [false, true] {
            let mut server = Server::start(&binary);
            let bus = fresh(&server).await;
            for n in 0..5u8 {
                publish_one(&bus, Stream::Ase, Message::new("ase.00.t.x", vec![n])).await.unwrap();
            }
            server.kill();
            let yesterday = server.backup();
            server.start_again();
            eventually(async || bus.last_seq(Stream::Ase).await.ok()).await;
            let (subscription, place) = having_read(&bus).await;
            server.kill();
            server.restore(&yesterday);
            server.start_again();
            for n in 0..if grown { 20u8 } else { 1 } {
                let message = || Message::new("ase.00.t.x", vec![n]).with_id(n.to_string());
                eventually(async || publish_one(&bus, Stream::Ase, message()).await.ok()).await;
            }
            assert_rewound(&bus, subscription, &place).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_never_waits_as_long_as_an_answer_takes_is_not_starved() {
    let server = Server::start(&servers()[1]);
    let bus = fresh(&server).await;
    let far = JetStreamBus::connect(&JetStreamOptions::new(slow_way(&server, Duration::from_millis(150)).await)).await.unwrap();
    let mut subscription = far.subscribe(Stream::Ase, ">", 1).await.unwrap();
    let mut read = Vec::new();
    for seq in 1..=2 {
        publish_one(&bus, Stream::Ase, Message::new("ase.00.t.x", "x")).await.unwrap();
        let begun = Instant::now();
        while read.last() != Some(&seq) {
            assert!(begun.elapsed() < PATIENCE, "message {seq} does not come: {read:?}");
            match subscription.next_batch(10, Duration::from_millis(200)).await {
                Ok(batch) => read.extend(batch.iter().map(|message| message.seq)),
                Err(error) => assert!(error.is_retryable(), "{error}"),
            }
        }
        // After five seconds a reader asks whether its stream is still the same: two questions, six tenths of a second here.
        tokio::time::sleep(Duration::from_millis(5500)).await;
    }
    assert_eq!(read, [1, 2]);
}

#[tokio::test]
async fn a_server_without_streams_says_what_to_do() {
    let server = Server::start(&servers()[0]);
    let bus = connect(&server).await;
    let refused = publish_one(&bus, Stream::Ase, Message::new("ase.00.t.x", "x")).await.unwrap_err();
    assert!(refused.is_retryable() && refused.to_string().contains("aegis streams apply"), "{refused}");
    let unread = bus.last_seq(Stream::Ase).await.unwrap_err();
    assert!(unread.to_string().contains("aegis streams apply"), "{unread}");
}

async fn eventually<T>(attempt: impl AsyncFn() -> Option<T>) -> T {
    for _ in 0..200 {
        if let Some(done) = attempt().await {
            return done;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("it did not come to that in time");
}
