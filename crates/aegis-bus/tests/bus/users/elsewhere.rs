//! A server over which no answer comes, though it takes everything: it is left for another one, by what an edge asks and by what it ships.

use std::sync::Arc;
use std::time::Duration;

use aegis_bus::{Bucket, Bus, BusError, EdgeBus, JetStreamBus, JetStreamOptions, Message, Stream, definitions, subject};
use bytes::Bytes;
use futures_util::StreamExt;
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
        let event = subject::ase_tenant(&tenant("acme")).replace('>', "authorize_decision");
        let ship = || edge.publish(Stream::Ase, vec![Message::new(event.clone(), "event").with_id("1")]);
        let refused = timeout(PATIENCE, all()).await.unwrap().unwrap_err();
        assert!(refused.is_retryable(), "{refused}");
        assert!(timeout(PATIENCE, ship()).await.unwrap().pop().unwrap().as_ref().is_err_and(BusError::is_retryable));
        assert!(timeout(PATIENCE, asked.next()).await.unwrap().is_some(), "the silent server was asked");
        assert!(timeout(PATIENCE, shipped.next()).await.unwrap().is_some(), "and shipped to");

        // Control answers over another server. The silent one goes on as before.
        other.start_again();
        let control = JetStreamBus::connect(&JetStreamOptions::new(other.url())).await.unwrap();
        let streams = definitions::wanted(&definitions::Settings::default()).unwrap();
        let max_bytes = streams.into_iter().map(|stream| (stream.name, 8 << 20)).collect();
        let small = definitions::Settings { max_bytes, ..definitions::Settings::default() };
        control.apply_streams(&definitions::wanted(&small).unwrap(), &[]).await.unwrap();
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
