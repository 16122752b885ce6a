//! A server over which no answer comes, though it takes everything: it is left for another one, by what an edge asks and by what it ships.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aegis_bus::definitions::Definition;
use aegis_bus::{Bucket, Bus, BusError, EdgeBus, JetStreamBus, JetStreamOptions, Message, Stream, definitions, subject};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::join_all;
use tokio::time::{Instant, sleep, timeout};

use super::house::tenant;
use super::{PATIENCE, answer_feeds};
use crate::nats::{Server, servers};

/// How long an edge waits for an answer.
const WAIT: Duration = Duration::from_secs(1);

/// Takes what is asked over a server, and answers nothing: what was asked.
async fn takes_and_is_silent(server: &Server, filter: &str) -> async_nats::Subscriber {
    let client = async_nats::connect(server.url()).await.unwrap();
    let taken = client.subscribe(filter.to_owned()).await.unwrap();
    client.flush().await.unwrap();
    taken
}

/// All streams, with room for a test.
fn small_streams() -> Vec<Definition> {
    let streams = definitions::wanted(&definitions::Settings::default()).unwrap();
    let max_bytes = streams.into_iter().map(|stream| (stream.name, 8 << 20)).collect();
    definitions::wanted(&definitions::Settings { max_bytes, ..definitions::Settings::default() }).unwrap()
}

fn an_event() -> Message {
    Message::new(subject::ase_tenant(&tenant("acme")).replace('>', "authorize_decision"), "event").with_id("1")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_over_which_no_answer_comes_is_left_for_another() {
    for binary in servers() {
        let silent = Server::start(&binary);
        let mut asked = takes_and_is_silent(&silent, "feed.*").await;
        let mut shipped = takes_and_is_silent(&silent, "ase.>").await;
        let mut other = Server::start(&binary);
        other.kill();

        // The edge comes to the one that is there.
        let mut options = JetStreamOptions::new(silent.url());
        options.servers.push(other.url());
        options.timeout = WAIT;
        let edge = EdgeBus::connect(&options, "edge-1").await.unwrap();
        let all = || edge.kv_all(Bucket::Control, "acme.>");
        let ship = || edge.publish(Stream::Ase, vec![an_event()]);
        let refused = timeout(PATIENCE, all()).await.unwrap().unwrap_err();
        assert!(refused.is_retryable(), "{refused}");
        assert!(timeout(PATIENCE, ship()).await.unwrap().pop().unwrap().as_ref().is_err_and(BusError::is_retryable));
        assert!(timeout(PATIENCE, asked.next()).await.unwrap().is_some(), "the silent server was asked");
        assert!(timeout(PATIENCE, shipped.next()).await.unwrap().is_some(), "and shipped to");

        // Control answers over another server. The silent one goes on as before.
        other.start_again();
        let control = JetStreamBus::connect(&JetStreamOptions::new(other.url())).await.unwrap();
        control.apply_streams(&small_streams(), &[]).await.unwrap();
        control.kv_put(Bucket::Control, "acme.tool.x", Bytes::from_static(b"tool")).await.unwrap();
        answer_feeds(Arc::clone(&control));
        let begun = Instant::now();
        let (mut heard, mut taken) = (false, false);
        while !(heard && taken) {
            assert!(begun.elapsed() < PATIENCE, "heard: {heard}, taken: {taken}");
            heard = heard || all().await.is_ok_and(|all| all.len() == 1);
            taken = taken || ship().await.iter().all(Result::is_ok);
            sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(control.stream_state(Stream::Ase).await.unwrap().messages, 1);
        // A watch follows: what is changed there is heard.
        let mut watch = edge.kv_watch(Bucket::Containment, "acme.>").await.unwrap();
        control.kv_put(Bucket::Containment, "acme.agent.x", Bytes::from_static(b"frozen")).await.unwrap();
        let (key, value, _) = timeout(PATIENCE, watch.next()).await.unwrap().unwrap();
        assert_eq!((key.as_str(), value.as_ref()), ("acme.agent.x", &b"frozen"[..]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_shipped_leaves_a_server_that_says_that_nobody_takes_it_and_what_is_asked_stays() {
    // Side by side: each takes a quarter of a minute.
    join_all(servers().into_iter().map(ships_elsewhere)).await;
}

/// Over one server control answers, and there is no stream; over the other it is the other way round.
async fn ships_elsewhere(binary: PathBuf) {
    let near = Server::start(&binary);
    let control = JetStreamBus::connect(&JetStreamOptions::new(near.url())).await.unwrap();
    let buckets: Vec<Definition> = small_streams().into_iter().filter(|stream| stream.name.starts_with("KV_")).collect();
    control.apply_streams(&buckets, &[]).await.unwrap();
    control.kv_put(Bucket::Control, "acme.tool.x", Bytes::from_static(b"tool")).await.unwrap();
    answer_feeds(Arc::clone(&control));
    let mut far = Server::start(&binary);
    far.kill();

    let mut options = JetStreamOptions::new(near.url());
    options.servers.push(far.url());
    let edge = EdgeBus::connect(&options, "edge-1").await.unwrap();
    let ship = || edge.publish(Stream::Ase, vec![an_event()]);
    let begun = Instant::now();
    while edge.kv_all(Bucket::Control, "acme.>").await.is_err() {
        assert!(begun.elapsed() < PATIENCE, "control is not asked");
    }
    let refused = timeout(PATIENCE, ship()).await.unwrap().pop().unwrap().unwrap_err();
    assert!(refused.is_retryable() && refused.to_string().contains("no stream answers"), "{refused}");
    assert_eq!(edge.servers_left(), 0, "one refusal is none to leave for");

    far.start_again();
    let streams = JetStreamBus::connect(&JetStreamOptions::new(far.url())).await.unwrap();
    streams.apply_streams(&small_streams(), &[]).await.unwrap();
    let begun = Instant::now();
    while !ship().await.iter().all(Result::is_ok) {
        assert!(begun.elapsed() < PATIENCE, "nothing is taken");
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(streams.stream_state(Stream::Ase).await.unwrap().messages, 1);
    assert_eq!(edge.servers_left(), 1);
    // Nobody answers over the other server: what is asked is where it was.
    assert_eq!(edge.kv_all(Bucket::Control, "acme.>").await.unwrap().len(), 1);
}
