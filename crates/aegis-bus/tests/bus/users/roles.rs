//! What each role may on a real server, and what it may not: everything is tried, and the server's own word is what counts.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use aegis_bus::users::{Part, inbox_prefix};
use aegis_bus::{Bucket, Bus, JetStreamBus, Message, Stream, Subscription, definitions, subject};
use aegis_model::partition_of;
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::house::{self, House, publish, tenant};
use crate::nats::{Way, servers};

/// How long something is waited for that comes.
const COMES: Duration = Duration::from_secs(60);

const STREAMS: [&str; 10] =
    ["ASE", "APPROVALS", "ALERTS", "EPISODES", "CKPT", "DLQ", "KV_containment", "KV_control", "KV_leases", "KV_trust"];

fn acme(kind: &str) -> String {
    subject::ase_tenant(&tenant("acme")).replace('>', kind)
}

/// One subject of each kind that there is.
fn everything() -> BTreeSet<String> {
    let plain = ["approval.acme.1", "alert.acme.1", "retract.acme.1", "episode.acme.1", "ckpt.00", "tick.00", "ruleset.00"];
    let told = ["hb.edge-1", "hb.control", "ack.edge-1", "feed.edge-1", "lake.edge-1", "backfill.edge-1", "_R_.x"];
    let feed = ["control.beat", "control.acme.tool.x", "containment.acme.agent.x", "trust.acme.x"];
    let positions = ["ASE.detect", "ASE.control-archive", "ASE.lake", "ALERTS.respond", "APPROVALS.control-approvals"];
    let api =
        ["STREAM.INFO.{}", "STREAM.MSG.GET.{}", "STREAM.PURGE.{}", "STREAM.DELETE.{}", "STREAM.UPDATE.{}", "STREAM.CREATE.{}"];
    let of_consumers = [
        "CREATE.{}",
        "CREATE.{}.x",
        "CREATE.{}.x.a.>",
        "INFO.{}.x",
        "MSG.NEXT.{}.x",
        "DELETE.{}.x",
        "DURABLE.CREATE.{}.x",
        "NAMES.{}",
    ];
    let api = api.iter().map(|form| format!("$JS.API.{form}"));
    let api = api.chain(of_consumers.iter().map(|form| format!("$JS.API.CONSUMER.{form}")));
    let users = ["admin", "control", "edge-1"].into_iter().chain(Part::ALL.map(Part::user));
    let mut all: BTreeSet<String> = plain.into_iter().chain(told).map(str::to_owned).collect();
    all.extend(["authorize_decision", "approval_decided", "lane_open", "receipt_chain_broken"].map(acme));
    all.extend(["external_event-github_webhook", "external_event-openai_trace", "external_event-otlp"].map(acme));
    all.extend(feed.map(|key| format!("$KV.{key}")));
    all.extend(positions.map(|place| format!("$KV.leases.position.{place}")));
    all.extend(["$KV.leases.detect.00", "$JS.API.INFO", "$JS.API.STREAM.NAMES", "$JS.API.STREAM.LIST"].map(str::to_owned));
    all.insert(subject::dlq(partition_of(&tenant("acme"))));
    all.extend(users.map(|user| format!("{}.x", inbox_prefix(user))));
    all.extend(api.flat_map(|form| STREAMS.map(|stream| form.replace("{}", stream))));
    all
}

/// What reading a stream takes.
fn reading(stream: &str) -> Vec<String> {
    let forms = ["STREAM.INFO.{}", "STREAM.MSG.GET.{}", "CONSUMER.CREATE.{}.x", "CONSUMER.CREATE.{}.x.a.>"];
    let forms = forms.into_iter().chain(["CONSUMER.INFO.{}.x", "CONSUMER.MSG.NEXT.{}.x", "CONSUMER.DELETE.{}.x"]);
    forms.map(|form| format!("$JS.API.{}", form.replace("{}", stream))).collect()
}

/// What of everything a part may write to, and nothing else.
fn may(part: Part) -> BTreeSet<String> {
    let (writes, reads): (&[&str], &[&str]) = match part {
        Part::Detect => (
            &["alert.acme.1", "retract.acme.1", "episode.acme.1", "ckpt.00", "tick.00", "$KV.leases.position.ASE.detect"],
            &["ASE", "ALERTS", "CKPT"],
        ),
        Part::Respond => (&["$KV.leases.position.ALERTS.respond"], &["ALERTS"]),
        Part::History => (&["$KV.leases.position.ASE.control-archive"], &["ASE"]),
        Part::Ingest => (&[], &[]),
        Part::Lake => (&["$KV.leases.position.ASE.lake"], &["ASE"]),
    };
    let mut may: BTreeSet<String> = writes.iter().map(|subject| (*subject).to_owned()).collect();
    may.extend(reads.iter().flat_map(|stream| reading(stream)));
    if matches!(part, Part::Detect | Part::Respond | Part::History) {
        // How far others have read is asked there.
        may.insert("$JS.API.STREAM.MSG.GET.KV_leases".to_owned());
    }
    if matches!(part, Part::Detect | Part::Respond) {
        may.insert(subject::dlq(partition_of(&tenant("acme"))));
    }
    if part == Part::Ingest {
        may.extend(["external_event-github_webhook", "external_event-openai_trace", "external_event-otlp"].map(acme));
    }
    may
}

/// What control may: what no part may of it is the feed, what is frozen, and making room.
fn may_control() -> BTreeSet<String> {
    let is_control_s = |subject: &String| {
        let roots = ["ase.", "approval.", "ruleset.", "dlq.", "lake.", "backfill.", "_R_."];
        let of_feed = ["$KV.control.", "$KV.containment.", "$KV.trust."];
        let places = ["$KV.leases.position.APPROVALS.control-approvals", "$KV.leases.position.ASE.lake"];
        let purges = ["ASE", "APPROVALS", "ALERTS", "EPISODES"].map(|stream| format!("$JS.API.STREAM.PURGE.{stream}"));
        roots.iter().chain(&of_feed).any(|root| subject.starts_with(root))
            || places.contains(&subject.as_str())
            || purges.contains(subject)
            || subject.starts_with("$JS.API.STREAM.INFO.")
    };
    let mut may: BTreeSet<String> = everything().into_iter().filter(is_control_s).collect();
    may.extend(["APPROVALS", "KV_containment", "KV_control", "KV_leases", "KV_trust"].into_iter().flat_map(reading));
    may
}

/// The subjects that the server refuses to a user; `ask` tries one.
async fn refused(house: &House, user: &str, ask: impl AsyncFn(&async_nats::Client, String)) -> BTreeSet<String> {
    let (client, mut refusals) = house.raw_with_refusals(user).await;
    // Nobody may: what was refused before it was told before it.
    let last = "$SYS.the.end";
    let mut refused = BTreeSet::new();
    for subject in everything() {
        ask(&client, subject).await;
        client.publish(last, Bytes::new()).await.unwrap();
        // Each before the next: the client drops refusals of which too many were not looked at.
        loop {
            let subject = told_subject(&mut refusals).await;
            if subject == last {
                break;
            }
            refused.insert(subject);
        }
    }
    refused
}

/// The subject that a refusal names.
async fn told_subject(refusals: &mut mpsc::UnboundedReceiver<String>) -> String {
    let told = timeout(COMES, refusals.recv()).await.unwrap().unwrap();
    assert!(told.to_lowercase().contains("permissions violation"), "{told}");
    told.split('"').nth(1).unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_writes_where_it_must_and_nowhere_else() {
    for binary in servers() {
        let house = House::build(&binary).await;
        let users = Part::ALL.map(|part| (part.user(), may(part))).into_iter().chain([("control", may_control())]);
        for (user, allowed) in users {
            assert!(allowed.is_subset(&everything()), "{user}");
            let tried = refused(&house, user, async |client, subject| {
                client.publish(subject, Bytes::from_static(b"{}")).await.unwrap();
            });
            let expected: BTreeSet<String> = everything().difference(&allowed).cloned().collect();
            assert_eq!(tried.await, expected, "{user} on {}", binary.display());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_hears_its_own_answers_and_nothing_else() {
    for binary in servers() {
        let house = House::build(&binary).await;
        for part in Part::ALL {
            let user = part.user();
            let tried = refused(&house, user, async |client, subject| {
                // Dropped before anything comes: what counts is what the server says of it.
                let _heard = client.subscribe(subject).await.unwrap();
                client.flush().await.unwrap();
            });
            let own = format!("{}.x", inbox_prefix(user));
            let expected: BTreeSet<String> = everything().into_iter().filter(|subject| *subject != own).collect();
            assert_eq!(tried.await, expected, "{user} on {}", binary.display());
            let (client, mut refusals) = house.raw_with_refusals(user).await;
            for wider in [">", "*", "ase.>", "alert.>", "approval.>", "$KV.>", "$JS.>", "_INBOX.>", "_INBOX_control.>", "_R_.>"] {
                let _heard = client.subscribe(wider).await.unwrap();
                client.flush().await.unwrap();
                assert_eq!(told_subject(&mut refusals).await, wider, "{user}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ingest_reaches_nothing_by_the_server_s_answers_either() {
    for binary in servers() {
        let house = House::build(&binary).await;
        let watcher = house.watcher().await;
        let mut everything_heard = watcher.subscribe(">").await.unwrap();
        watcher.flush().await.unwrap();
        let ingest = house.raw(Part::Ingest.user()).await;
        let observation = acme("external_event-otlp");
        // Those between accounts the server refuses as a place for an answer by itself.
        let is_another_s = |subject: &String| !may(Part::Ingest).contains(subject) && !subject.starts_with("_R_.");
        let places: BTreeSet<String> = everything().into_iter().filter(is_another_s).collect();
        for place in &places {
            ingest.publish_with_reply(observation.clone(), place.clone(), Bytes::from_static(b"carrier")).await.unwrap();
        }
        ingest.publish(observation.clone(), Bytes::from_static(b"the end")).await.unwrap();
        ingest.flush().await.unwrap();
        let mut carried = 0;
        // Until it is over, and then what is still on its way.
        let mut wait = COMES;
        while let Ok(Some(heard)) = timeout(wait, everything_heard.next()).await {
            assert!(!places.contains(&heard.subject.to_string()), "{} was reached: {:?}", heard.subject, heard.payload);
            carried += usize::from(heard.payload == "carrier");
            if heard.payload == "the end" {
                wait = Duration::from_millis(500);
            }
        }
        assert_eq!(carried, places.len(), "what is its own went through");
        let detect = part(&house, Part::Detect).await;
        assert_eq!(detect.stream_state(Stream::Alerts).await.unwrap().messages, 0);
        assert!(house.control().await.kv_all(Bucket::Control, ">").await.unwrap().is_empty());
    }
}

async fn part(house: &House, part: Part) -> Arc<JetStreamBus> {
    JetStreamBus::connect(&house.options(part.user())).await.unwrap()
}

async fn next(subscription: &mut Box<dyn Subscription>) -> String {
    let batch = subscription.next_batch(1, COMES).await.unwrap();
    String::from_utf8(batch[0].payload.to_vec()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_role_can_do_its_work() {
    for binary in servers() {
        let house = House::build(&binary).await;
        let control = house.control().await;
        let beside = async |part: Part| control.connect_beside(&house.options(part.user())).await.unwrap();
        let ingest = beside(Part::Ingest).await;
        let message = || Message::new(acme("external_event-github_webhook"), "observation").with_id("1");
        assert_eq!(publish(&*ingest, Stream::Ase, message()).await, 1);
        assert!(ingest.publish(Stream::Ase, vec![message()]).await.pop().unwrap().unwrap().duplicate);

        for (reader, name, filter) in
            [(Part::Detect, "detect", ">"), (Part::History, "control-archive", "ase.>"), (Part::Lake, "lake", "ase.>")]
        {
            let bus = beside(reader).await;
            let mut events = bus.subscribe(Stream::Ase, filter, 1).await.unwrap();
            assert_eq!(next(&mut events).await, "observation");
            bus.set_consumer_position(Stream::Ase, name, 1).await.unwrap();
            let place = bus.place(Stream::Ase, 1).await.unwrap();
            assert!(bus.is_still(Stream::Ase, &place).await.unwrap());
            assert_eq!((bus.last_seq(Stream::Ase).await.unwrap(), bus.stream_state(Stream::Ase).await.unwrap().messages), (1, 1));
            // Who asks is who begins behind it, or waits for the lake.
            if reader != Part::Lake {
                assert_eq!(bus.consumer_position(Stream::Ase, name).await.unwrap(), 1);
            }
        }

        let detect = beside(Part::Detect).await;
        publish(&*detect, Stream::Alerts, Message::new("alert.acme.1", "alert").expecting(0)).await;
        publish(&*detect, Stream::Alerts, Message::new("retract.acme.1", "retraction")).await;
        publish(&*detect, Stream::Episodes, Message::new("episode.acme.1", "episode")).await;
        publish(&*detect, Stream::Ckpt, Message::new(subject::ckpt_part(0, 0, 0), "part")).await;
        publish(&*detect, Stream::Ckpt, Message::new("ckpt.00", "checkpoint")).await;
        publish(&*detect, Stream::Ase, Message::new("tick.00", "{}")).await;
        publish(&*detect, Stream::Dlq, Message::new("dlq.00", "letter")).await;
        assert_eq!(detect.consumer_position(Stream::Ase, "lake").await.unwrap(), 1);
        let mut checkpoints = detect.subscribe(Stream::Ckpt, "ckpt.00", 0).await.unwrap();
        assert_eq!(next(&mut checkpoints).await, "checkpoint");

        let respond = beside(Part::Respond).await;
        for bus in [&detect, &respond] {
            let mut alerts = bus.subscribe(Stream::Alerts, ">", 1).await.unwrap();
            assert_eq!(next(&mut alerts).await, "alert");
        }
        respond.set_consumer_position(Stream::Alerts, "respond", 2).await.unwrap();
        assert_eq!(respond.consumer_position(Stream::Alerts, "respond").await.unwrap(), 2);
        publish(&*respond, Stream::Dlq, Message::new("dlq.00", "letter of response")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_alone_makes_room_of_what_all_have_passed() {
    for binary in servers() {
        let house = House::build(&binary).await;
        let control = house.control().await;
        for _ in 0..7 {
            publish(&*control, Stream::Ase, Message::new(acme("authorize_decision"), vec![b'x'; 1_000_000])).await;
        }
        for (reader, name) in [(Part::Detect, "detect"), (Part::History, "control-archive"), (Part::Lake, "lake")] {
            part(&house, reader).await.set_consumer_position(Stream::Ase, name, 7).await.unwrap();
        }
        assert_eq!(control.stream_state(Stream::Ase).await.unwrap().messages, 7);
        control.make_room(Stream::Ase).await;
        assert!(control.stream_state(Stream::Ase).await.unwrap().messages < 7);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_cut_comes_back_alone_and_the_others_go_on() {
    for binary in servers() {
        let house = House::build(&binary).await;
        let control = house.control().await;
        let way = Way::to(&house.server).await;
        let mut options = house.options(Part::Detect.user());
        options.servers = vec![way.url.clone()];
        let detect = control.connect_beside(&options).await.unwrap();
        let lake = control.connect_beside(&house.options(Part::Lake.user())).await.unwrap();
        let mut of_detect = detect.subscribe(Stream::Ase, ">", 1).await.unwrap();
        let mut of_lake = lake.subscribe(Stream::Ase, "ase.>", 1).await.unwrap();
        let event = |payload: &'static str| Message::new(acme("authorize_decision"), payload);
        publish(&*control, Stream::Ase, event("one")).await;
        assert_eq!((next(&mut of_detect).await, next(&mut of_lake).await), ("one".to_owned(), "one".to_owned()));

        way.cut();
        let is_connected = async |expected: bool| {
            while detect.is_connected() != expected {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(COMES, is_connected(false)).await.unwrap();
        assert!(control.is_connected() && lake.is_connected());
        publish(&*control, Stream::Ase, event("two")).await;
        assert_eq!(next(&mut of_lake).await, "two");
        lake.set_consumer_position(Stream::Ase, "lake", 2).await.unwrap();

        way.mend();
        timeout(COMES, is_connected(true)).await.unwrap();
        let read = async {
            loop {
                // A reader that is cut off says so, and goes on.
                match of_detect.next_batch(1, COMES).await {
                    Ok(batch) if !batch.is_empty() => return batch[0].payload.clone(),
                    _ => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        };
        assert_eq!(timeout(COMES * 2, read).await.unwrap(), "two");
        publish(&*detect, Stream::Alerts, Message::new("alert.acme.1", "alert").expecting(0)).await;
    }
}

#[tokio::test]
async fn a_stream_that_has_to_be_made_anew_is_with_the_shipped_users_if_its_loss_is_allowed() {
    for binary in servers() {
        let house = House::build(&binary).await;
        let raw = async_nats::jetstream::new(house.raw("admin").await);
        raw.delete_stream("DLQ").await.unwrap();
        let in_memory = async_nats::jetstream::stream::Config {
            name: "DLQ".to_owned(),
            subjects: vec!["dlq.>".to_owned()],
            storage: async_nats::jetstream::stream::StorageType::Memory,
            max_bytes: 1 << 20,
            ..Default::default()
        };
        raw.create_stream(in_memory).await.unwrap();
        let control = house.control().await;
        let published = control.publish(Stream::Dlq, vec![Message::new("dlq.00", "letter")]).await;
        assert!(published.iter().all(Result::is_ok), "{published:?}");

        let admin = JetStreamBus::connect(&house.options("admin")).await.unwrap();
        let wanted = definitions::wanted(&house::small()).unwrap();
        let refused = admin.apply_streams(&wanted, &["ASE".to_owned()]).await.unwrap_err();
        assert!(refused.to_string().contains("DLQ would lose all 1 messages"), "{refused}");
        assert_eq!(control.stream_state(Stream::Dlq).await.unwrap().messages, 1, "nothing was done");
        admin.apply_streams(&wanted, &["DLQ".to_owned()]).await.unwrap();
        let plan = admin.plan_streams(&wanted).await.unwrap();
        assert!(plan.iter().all(|planned| planned.change == definitions::Change::None), "{plan:?}");
        assert_eq!(control.stream_state(Stream::Dlq).await.unwrap().messages, 0);
    }
}
