//! What was acknowledged survives kill -9: a real child process publishes, and is killed at moments nobody chose.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use aegis_bus::{Bucket, Bus, EmbeddedBus, EmbeddedLimits, Message, Stream};
use aegis_model::SystemClock;

const FOLDER: &str = "AEGIS_BUS_KILL_FOLDER";
const START: &str = "AEGIS_BUS_KILL_START";
const KILLS: u64 = 20;

async fn open(folder: &Path) -> Arc<EmbeddedBus> {
    EmbeddedBus::open(&folder.join("bus.db"), EmbeddedLimits::default(), Arc::new(SystemClock)).await.unwrap()
}

/// The child: publishes ids from START on, from three tasks, and prints each acknowledgement. Does nothing when run as a test.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_publishes_until_it_is_killed() {
    let (Ok(folder), Ok(start)) = (std::env::var(FOLDER), std::env::var(START)) else { return };
    let bus = open(Path::new(&folder)).await;
    let next = Arc::new(std::sync::atomic::AtomicU64::new(start.parse().unwrap()));
    let publishers: Vec<_> = [1, 7, 64]
        .into_iter()
        .map(|batch| {
            let (bus, next) = (Arc::clone(&bus), Arc::clone(&next));
            tokio::spawn(async move {
                loop {
                    let first = next.fetch_add(batch, std::sync::atomic::Ordering::SeqCst);
                    let ids: Vec<u64> = (first..first + batch).collect();
                    let messages =
                        ids.iter().map(|id| Message::new("ase.00.t.x", format!("body of {id}")).with_id(id.to_string()));
                    let acks = bus.publish(Stream::Ase, messages.collect()).await;
                    let revision = bus.kv_put(Bucket::Control, "last", first.to_string().into()).await.unwrap();
                    let lines: Vec<String> =
                        ids.iter().zip(acks).map(|(id, ack)| format!("ack {id} {}", ack.unwrap().seq)).collect();
                    println!("{}\nrevision {revision}", lines.join("\n"));
                }
            })
        })
        .collect();
    futures_util::future::join_all(publishers).await;
}

#[tokio::test]
async fn acknowledged_messages_survive_kill_nine() {
    let folder = tempfile::tempdir().unwrap();
    let mut acked: HashMap<u64, u64> = HashMap::new();
    let mut revision = 0;
    for round in 0..KILLS {
        // Some ids of the round before are published again: they must be recognised.
        let start = acked.keys().max().map_or(0, |max| max.saturating_sub(40));
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "kill::child_publishes_until_it_is_killed", "--nocapture", "--test-threads=1"])
            .env(FOLDER, folder.path())
            .env(START, start.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // The moment of the kill: after a number of acknowledgements that differs from round to round.
        let patience = 1 + (round * 2_654_435_761) % 1500;
        let mut seen = 0;
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        // Lines that were on their way when the child died count too, but not one that the kill cut short.
        while output.read_line(&mut line).unwrap() > 0 && line.ends_with('\n') {
            match line.trim_end().split(' ').collect::<Vec<_>>()[..] {
                ["ack", id, seq] => {
                    let (id, seq) = (id.parse().unwrap(), seq.parse().unwrap());
                    let earlier = acked.insert(id, seq);
                    assert!(earlier.is_none_or(|earlier| earlier == seq), "round {round}: id {id} has two places");
                    seen += 1;
                    if seen == patience {
                        child.kill().unwrap();
                    }
                }
                ["revision", r] => revision = revision.max(r.parse().unwrap()),
                _ => {}
            }
            line.clear();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(seen >= patience, "round {round}: the child died before it was killed");

        let bus = open(folder.path()).await;
        let stored = read_all(&bus).await;
        assert!(stored.keys().copied().eq(1..=bus.last_seq(Stream::Ase).await.unwrap()), "round {round}: a gap in the sequence");
        let mut places: HashMap<u64, u64> = HashMap::new();
        for (seq, id) in stored {
            assert!(places.insert(id, seq).is_none(), "round {round}: id {id} is stored twice");
        }
        for (id, seq) in &acked {
            assert_eq!(places.get(id), Some(seq), "round {round}: acknowledged id {id}");
        }
        let (_, stored_revision) = bus.kv_get(Bucket::Control, "last").await.unwrap().unwrap();
        assert!(stored_revision >= revision, "round {round}: a revision went back");
        bus.close().await;
    }
    assert!(acked.len() as u64 > KILLS);
}

async fn read_all(bus: &EmbeddedBus) -> BTreeMap<u64, u64> {
    let mut subscription = bus.subscribe(Stream::Ase, ">", 1).await.unwrap();
    let mut all = BTreeMap::new();
    loop {
        let batch = subscription.next_batch(1000, Duration::ZERO).await.unwrap();
        if batch.is_empty() {
            return all;
        }
        for delivered in batch {
            let body = String::from_utf8(delivered.payload.to_vec()).unwrap();
            all.insert(delivered.seq, body.strip_prefix("body of ").unwrap().parse().unwrap());
        }
    }
}
