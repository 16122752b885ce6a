//! The server's users on real servers: each can do its work, and an edge reaches nothing that is not its own, whatever it names as the place for
//! an answer. What roles may: `roles`.

mod elsewhere;
mod house;
mod roles;

use std::sync::Arc;
use std::time::Duration;

use crate::nats::servers;
use aegis_bus::feed::{FeedPage, FeedRequest, page};
use aegis_bus::{Bucket, Bus, EdgeBus, JetStreamBus, Message, Stream, subject};
use aegis_model::partition_of;
use async_nats::ConnectOptions;
use bytes::Bytes;
use futures_util::StreamExt;
use house::{House, publish, tenant};
use nkeys::KeyPair;

/// How long is waited for what comes: on a busy machine that may be long, and what is there ends the wait at once.
const PATIENCE: Duration = Duration::from_secs(60);

/// What nobody but its owner must reach, for `edge-1` of the tenant `acme`.
fn forbidden() -> Vec<String> {
    let beta = partition_of(&tenant("beta"));
    let of_others = [
        format!("ase.{beta:02}.beta.authorize_decision"),
        "approval.beta.1".to_owned(),
        "alert.acme.1".to_owned(),
        "retract.acme.1".to_owned(),
        "episode.acme.1".to_owned(),
        "ckpt.00".to_owned(),
        "tick.00".to_owned(),
        "ruleset.00".to_owned(),
        format!("dlq.{beta:02}"),
        "hb.edge-2".to_owned(),
        "hb.control".to_owned(),
        "ack.edge-2".to_owned(),
        "feed.edge-2".to_owned(),
        "lake.edge-1".to_owned(),
        "backfill.edge-2".to_owned(),
        "_INBOX_edge-2.x".to_owned(),
        "_INBOX_control.x".to_owned(),
        "_INBOX_soc.detect.x".to_owned(),
        "_INBOX_admin.x".to_owned(),
    ];
    let feed = [
        "control.acme.tool.x",
        "control.beta.tool.x",
        "control.beat",
        "containment.acme.agent.x",
        "trust.acme.x",
        "trust.beta.x",
    ];
    let api = ["STREAM.INFO.ALERTS", "STREAM.DELETE.ASE", "STREAM.PURGE.KV_containment", "STREAM.MSG.GET.APPROVALS"];
    let api = api.into_iter().chain(["CONSUMER.CREATE.ALERTS", "CONSUMER.CREATE.KV_control.x.$KV.control.acme.>", "INFO"]);
    let api = api.map(|request| format!("$JS.API.{request}"));
    let leases = "$KV.leases.position.ASE.detect".to_owned();
    of_others.into_iter().chain(feed.map(|key| format!("$KV.{key}"))).chain([leases]).chain(api).collect()
}

/// Answers edges as control does.
fn answer_feeds(bus: Arc<JetStreamBus>) {
    tokio::spawn(async move {
        let mut requests = bus.hear("feed.*").await.unwrap();
        while let Ok(request) = requests.next().await {
            let asked: FeedRequest = serde_json::from_slice(&request.payload).unwrap();
            let answer = page(&*bus, &asked).await.unwrap_or_else(|error| FeedPage::refused(error.to_string()));
            bus.tell(&request.reply_to.unwrap(), answer.write().unwrap()).await.unwrap();
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_user_can_do_its_work() {
    for binary in servers() {
        let house = House::build(&binary).await;
        let control = house.control().await;
        let edge = EdgeBus::connect(&house.options("edge-1"), "edge-1").await.unwrap();
        let mut heartbeats = control.hear("hb.*").await.unwrap();
        answer_feeds(control.clone());

        // The edge ships, with ids that are stored once.
        let event = subject::ase_tenant(&tenant("acme")).replace('>', "authorize_decision");
        let message = || Message::new(event.clone(), "event").with_id("1");
        assert_eq!(publish(&*edge, Stream::Ase, message()).await, 1);
        let again = edge.publish(Stream::Ase, vec![message()]).await.pop().unwrap().unwrap();
        assert!(again.duplicate && again.seq == 1);
        publish(&*edge, Stream::Approvals, Message::new("approval.acme.1", "frozen")).await;
        publish(&*edge, Stream::Dlq, Message::new(subject::dlq(partition_of(&tenant("acme"))), "letter")).await;
        edge.tell("hb.edge-1", Bytes::from_static(b"alive")).await.unwrap();
        assert_eq!(heartbeats.next().await.unwrap().payload, "alive");

        // Control reads what is frozen, remembers where it is, and tells of rules.
        let mut frozen = control.subscribe(Stream::Approvals, "approval.>", 1).await.unwrap();
        assert_eq!(frozen.next_batch(10, PATIENCE).await.unwrap()[0].payload, "frozen");
        control.set_consumer_position(Stream::Approvals, "control-approvals", 1).await.unwrap();
        assert_eq!(control.consumer_position(Stream::Approvals, "control-approvals").await.unwrap(), 1);
        publish(&*control, Stream::Ase, Message::new("ruleset.00", "{}")).await;
        publish(&*control, Stream::Ase, Message::new(event.replace("authorize_decision", "config_changed"), "change")).await;

        // The feed: what stood, and what comes.
        control.kv_put(Bucket::Control, "acme.tool.x", Bytes::from_static(b"tool")).await.unwrap();
        control.kv_put(Bucket::Control, "beta.tool.x", Bytes::from_static(b"of others")).await.unwrap();
        let mut confirmed = edge.hear(&subject::lake("edge-1")).await.unwrap();
        let mut missing = edge.hear(&subject::backfill("edge-1")).await.unwrap();
        let all = edge.kv_all(Bucket::Control, "acme.>").await.unwrap();
        assert_eq!(all.iter().map(|(key, ..)| key.as_str()).collect::<Vec<_>>(), ["acme.tool.x"]);
        // What control says to the edge alone: the answer came behind its listening.
        control.tell(&subject::lake("edge-1"), Bytes::from_static(b"confirmed")).await.unwrap();
        control.tell(&subject::backfill("edge-1"), Bytes::from_static(b"missing")).await.unwrap();
        let told = async { (confirmed.next().await.unwrap().payload, missing.next().await.unwrap().payload) };
        let told = tokio::time::timeout(PATIENCE, told).await.unwrap();
        assert_eq!(told, (Bytes::from_static(b"confirmed"), Bytes::from_static(b"missing")));
        let mut watch = edge.kv_watch(Bucket::Containment, "acme.>").await.unwrap();
        let mut beat = edge.kv_watch(Bucket::Control, subject::BEAT).await.unwrap();
        let heard = tokio::spawn(async move { (watch.next().await.unwrap(), beat.next().await.unwrap()) });
        // Whichever comes first, the answer to what it asks or the change that it hears: nothing is missed in between.
        control.kv_put(Bucket::Containment, "beta.agent.x", Bytes::from_static(b"of others")).await.unwrap();
        control.kv_put(Bucket::Containment, "acme.agent.x", Bytes::from_static(b"frozen")).await.unwrap();
        control.kv_put(Bucket::Control, subject::BEAT, Bytes::from_static(b"alive")).await.unwrap();
        let (change, beat) = tokio::time::timeout(PATIENCE, heard).await.unwrap().unwrap();
        assert_eq!((change.0.as_str(), change.1.as_ref()), ("acme.agent.x", &b"frozen"[..]));
        assert_eq!((beat.0.as_str(), beat.1.as_ref()), ("beat", &b"alive"[..]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edge_writes_nowhere_but_where_it_may_even_by_the_server_s_answers() {
    for binary in servers() {
        let house = House::build(&binary).await;
        let watcher = house.watcher().await;
        let mut everything = watcher.subscribe(">").await.unwrap();
        let victim = house.raw("edge-2").await;
        let mut of_victim = victim.subscribe("_INBOX_edge-2.>").await.unwrap();
        watcher.flush().await.unwrap();
        victim.flush().await.unwrap();
        let edge = house.raw("edge-1").await;
        let its_own = subject::ase_tenant(&tenant("acme")).replace('>', "authorize_decision");
        let forbidden = forbidden();
        for subject in &forbidden {
            edge.publish(subject.clone(), Bytes::from_static(b"attack")).await.unwrap();
            // The server answers a publish to a stream wherever it is told to.
            edge.publish_with_reply(its_own.clone(), subject.clone(), Bytes::from_static(b"carrier")).await.unwrap();
            edge.publish_with_reply("feed.edge-1", subject.clone(), Bytes::from_static(b"carrier")).await.unwrap();
        }
        edge.publish("hb.edge-1", Bytes::from_static(b"the end")).await.unwrap();
        edge.flush().await.unwrap();
        let mut carried = 0;
        loop {
            let heard = tokio::time::timeout(PATIENCE, everything.next()).await.unwrap().unwrap();
            assert!(!forbidden.contains(&heard.subject.to_string()), "{} was reached: {:?}", heard.subject, heard.payload);
            assert_ne!(heard.payload, "attack");
            carried += usize::from(heard.payload == "carrier" && heard.subject.starts_with("ase."));
            if heard.payload == "the end" {
                break;
            }
        }
        assert_eq!(carried, forbidden.len(), "what is its own went through");
        // Answers that are on their way.
        while let Ok(Some(heard)) = tokio::time::timeout(Duration::from_millis(500), everything.next()).await {
            assert!(!forbidden.contains(&heard.subject.to_string()), "{} was reached later: {:?}", heard.subject, heard.payload);
        }
        assert!(tokio::time::timeout(Duration::from_millis(200), of_victim.next()).await.is_err(), "another edge was reached");
        let control = house.control().await;
        for stream in [Stream::Alerts, Stream::Episodes, Stream::Ckpt, Stream::Dlq, Stream::Approvals] {
            assert_eq!(control.stream_state(stream).await.unwrap().messages, 0, "{stream}");
        }
        for bucket in Bucket::ALL {
            assert!(control.kv_all(bucket, ">").await.unwrap().is_empty(), "{bucket}");
        }
        if binary == servers()[1] {
            // That is no idle fear: within the account of the streams, the current server writes its answer into whatever stream it is named.
            watcher.publish_with_reply(its_own, "alert.acme.forged", Bytes::from_static(b"carrier")).await.unwrap();
            watcher.flush().await.unwrap();
            let forged = async {
                while control.stream_state(Stream::Alerts).await.unwrap().messages == 0 {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            tokio::time::timeout(PATIENCE, forged).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edge_hears_nothing_but_what_is_its_own() {
    for binary in servers() {
        let house = House::build(&binary).await;
        let edge = house.raw("edge-1").await;
        let mut heard = Vec::new();
        let wider =
            [">", "alert.>", "approval.>", "ase.>", "$KV.>", "$KV.control.>", "$KV.control.beta.>", "_INBOX_edge-2.>", "hb.*"];
        let wider = wider.into_iter().chain(["ack.*", "lake.*", "backfill.*", "feed.*", "_R_.>", "$JS.>", "_INBOX.>"]);
        // What it may not write, it may hear in part: what control says of its own.
        let its_own = ["lake.edge-1", "$KV.control.beat", "$KV.containment.acme.agent.x", "$KV.trust.acme.x"];
        let may_hear = |subject: &String| its_own.contains(&subject.as_str());
        let forbidden = || forbidden().into_iter().filter(|subject| !may_hear(subject));
        for filter in forbidden().chain(wider.map(str::to_owned)) {
            heard.push(edge.subscribe(filter).await.unwrap());
        }
        let mut its_own = edge.subscribe("$KV.control.acme.>").await.unwrap();
        edge.flush().await.unwrap();
        let watcher = house.watcher().await;
        // What is flushed is not yet taken: behind all others, this one hears.
        let begun = tokio::time::Instant::now();
        loop {
            watcher.publish("$KV.control.acme.tool.x", Bytes::from_static(b"its own")).await.unwrap();
            watcher.flush().await.unwrap();
            if tokio::time::timeout(Duration::from_millis(200), its_own.next()).await.is_ok() {
                break;
            }
            assert!(begun.elapsed() < PATIENCE, "it does not hear what is its own");
        }
        for subject in forbidden().filter(|subject| !subject.starts_with("$JS.") && !subject.contains("KV.control")) {
            watcher.publish(subject, Bytes::from_static(b"secret")).await.unwrap();
        }
        watcher.publish("$KV.control.beta.tool.x", Bytes::from_static(b"secret")).await.unwrap();
        watcher.publish("$KV.control.acme.tool.last", Bytes::from_static(b"its own")).await.unwrap();
        watcher.flush().await.unwrap();
        loop {
            let message = tokio::time::timeout(PATIENCE, its_own.next()).await.unwrap().unwrap();
            assert_eq!(message.payload, "its own");
            if message.subject.ends_with(".last") {
                break;
            }
        }
        for mut subscription in heard {
            if let Ok(Some(message)) = tokio::time::timeout(Duration::from_millis(5), subscription.next()).await {
                assert_eq!(
                    message.payload,
                    "its own",
                    "heard {} on {}",
                    String::from_utf8_lossy(&message.payload),
                    message.subject
                );
            }
        }
        // Nor does the server tell it of its streams.
        for request in ["$JS.API.STREAM.INFO.ALERTS", "$JS.API.STREAM.MSG.GET.APPROVALS", "$JS.API.CONSUMER.CREATE.ALERTS"] {
            let asked = tokio::time::timeout(Duration::from_millis(500), edge.request(request, Bytes::from_static(b"{}"))).await;
            assert!(!matches!(&asked, Ok(Ok(_))), "{request} was answered: {asked:?}");
        }
    }
}

#[tokio::test]
async fn nobody_comes_in_without_a_login() {
    for binary in servers() {
        let house = House::build(&binary).await;
        async_nats::connect(house.server.url()).await.unwrap_err();
        let stranger = ConnectOptions::new().nkey(KeyPair::new_user().seed().unwrap());
        stranger.connect(house.server.url()).await.unwrap_err();
    }
}
