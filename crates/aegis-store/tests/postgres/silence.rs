//! A server that vanishes and closes nothing: calls end, the next ones are not held up, and nothing is done twice.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aegis_model::{ManualClock, TenantId};
use aegis_store::{Secret, Store, StoreError};
use parking_lot::Mutex;

use crate::fixtures::{START, acme};
use crate::place::Place;

/// How long the stores of these tests wait for an answer.
const SHORT: Duration = Duration::from_secs(2);
/// By then a call has ended: TCP would try for a quarter of an hour.
const SOON: Duration = Duration::from_secs(60);

/// What a cable loses.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Loss {
    Nothing,
    Everything,
    /// All of a connection from its COMMIT on.
    Commits,
    /// What the server says to a COMMIT, and all of the connection behind it.
    AnswersToCommits,
}

/// A cable to the server. A connection that lost something stays open on both sides, and is silent from then on.
struct Cable {
    url: String,
    loss: Arc<Mutex<Loss>>,
}

impl Cable {
    fn to(place: &Place) -> Self {
        let (before, rest) = place.url.rsplit_once('@').unwrap();
        let (server, database) = rest.split_once('/').unwrap();
        let server: SocketAddr = server.parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("{before}@{}/{database}", listener.local_addr().unwrap());
        let loss = Arc::new(Mutex::new(Loss::Nothing));
        let losing = Arc::clone(&loss);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { return };
                let Ok(server) = TcpStream::connect(server) else { continue };
                let is_silent = Arc::new(AtomicBool::new(false));
                let ends = (client.try_clone().unwrap(), server.try_clone().unwrap());
                let (loss, silence) = (Arc::clone(&losing), Arc::clone(&is_silent));
                std::thread::spawn(move || carry(client, server, &loss, &silence, true));
                let loss = Arc::clone(&losing);
                std::thread::spawn(move || carry(ends.1, ends.0, &loss, &is_silent, false));
            }
        });
        Self { url, loss }
    }

    fn loses(&self, loss: Loss) {
        *self.loss.lock() = loss;
    }

    async fn store(&self) -> Store {
        let clock = Arc::new(ManualClock::new(START));
        Store::connect(&Secret::new(self.url.clone()), SHORT, clock).await.unwrap()
    }
}

/// One direction of a connection.
fn carry(mut from: TcpStream, mut to: TcpStream, loss: &Mutex<Loss>, is_silent: &AtomicBool, is_to_server: bool) {
    let mut buffer = [0; 16_384];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let part = &buffer[..count];
        let is_commit = is_to_server && part.windows(7).any(|word| word == b"COMMIT\0");
        let is_lost = is_silent.load(Ordering::SeqCst)
            || match *loss.lock() {
                Loss::Nothing => false,
                Loss::Everything => true,
                Loss::Commits => is_commit,
                Loss::AnswersToCommits => {
                    is_silent.fetch_or(is_commit, Ordering::SeqCst);
                    false
                }
            };
        if is_lost {
            is_silent.store(true, Ordering::SeqCst);
        } else if to.write_all(part).is_err() {
            break;
        }
    }
    if !is_silent.load(Ordering::SeqCst) {
        let _closed_already = to.shutdown(std::net::Shutdown::Both);
    }
}

fn tenant(name: &str) -> TenantId {
    TenantId::new(name).unwrap()
}

async fn create(store: &Store, name: &str) -> Result<bool, StoreError> {
    tokio::time::timeout(SOON, store.create_tenant(&tenant(name), name)).await.expect("a call that ends")
}

/// Until it succeeds: what the vanished connection had locked is free when the server gives it up.
async fn created_at_last(store: &Store, name: &str) -> bool {
    let tries = async {
        loop {
            match store.create_tenant(&tenant(name), name).await {
                Ok(is_new) => return is_new,
                Err(error) => assert!(error.is_transient(), "{error:?}"),
            }
        }
    };
    tokio::time::timeout(SOON, tries).await.expect("a write that succeeds")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_end_while_the_server_is_gone_and_the_next_ones_are_not_held_up() {
    let place = Place::new().await;
    let cable = Cable::to(&place);
    let store = cable.store().await;
    assert!(create(&store, "before").await.unwrap());
    // As many idle connections as there are.
    let reads: Vec<_> = (0..8)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move { store.ping().await.unwrap() })
        })
        .collect();
    for read in reads {
        read.await.unwrap();
    }

    cable.loses(Loss::Everything);
    for _ in 0..2 {
        let error = create(&store, "meanwhile").await.unwrap_err();
        assert!(error.is_transient(), "{error:?}");
        let read = tokio::time::timeout(SOON, store.tenant_exists(&acme())).await.expect("a read that ends");
        assert!(read.unwrap_err().is_transient());
    }
    // Who goes away while it waits leaves nothing behind that the next call would wait for.
    let given_up = tokio::time::timeout(Duration::from_millis(200), store.create_tenant(&tenant("given-up"), "x")).await;
    assert!(given_up.is_err());

    cable.loses(Loss::Nothing);
    assert!(created_at_last(&store, "after").await);
    assert!(store.tenant_exists(&tenant("before")).await.unwrap());
    for name in ["meanwhile", "given-up"] {
        assert!(!store.tenant_exists(&tenant(name)).await.unwrap(), "{name}");
    }
    store.close().await;
    assert!(store.ping().await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_never_arrived_is_undone_and_its_lock_is_given_up() {
    let place = Place::new().await;
    let cable = Cable::to(&place);
    let store = cable.store().await;
    cable.loses(Loss::Commits);
    let error = create(&store, "lost").await.unwrap_err();
    assert!(matches!(error, StoreError::NoAnswer(_)), "{error:?}");
    assert!(error.to_string().contains("no answer within 2 s"), "{error}");
    cable.loses(Loss::Nothing);
    assert!(created_at_last(&store, "lost").await, "it was not there");
    assert!(place.store.tenant_exists(&tenant("lost")).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_whose_answer_was_lost_is_made_once() {
    let place = Place::new().await;
    let cable = Cable::to(&place);
    let store = cable.store().await;
    let before = place.store.revision().await.unwrap();
    cable.loses(Loss::AnswersToCommits);
    let error = create(&store, "unheard").await.unwrap_err();
    assert!(matches!(error, StoreError::NoAnswer(_)), "{error:?}");
    cable.loses(Loss::Nothing);
    assert!(!created_at_last(&store, "unheard").await, "it is there already");
    assert_eq!(place.store.revision().await.unwrap(), before + 1);
}
