//! Measures the embedded driver: durable publishes in batches, then reading them from the file and from the tail.
//! `cargo run --release -p aegis-bus --example bus_throughput [MESSAGES] [PUBLISHERS] [PAYLOAD_BYTES]`
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use aegis_bus::{Bus, EmbeddedBus, EmbeddedLimits, Message, Stream};
use aegis_model::{SystemClock, new_event_id};
use tokio::time::Instant;

const BATCH: usize = 256;

#[tokio::main]
async fn main() {
    let mut args = std::env::args().skip(1).map(|a| a.parse::<usize>().unwrap());
    let messages = args.next().unwrap_or(200_000) / BATCH * BATCH;
    let publishers = args.next().unwrap_or(4);
    let payload = vec![b'x'; args.next().unwrap_or(1500)];
    let folder = tempfile::tempdir_in(".").unwrap();
    let bus = EmbeddedBus::open(&folder.path().join("bus.db"), EmbeddedLimits::default(), Arc::new(SystemClock)).await.unwrap();

    let mut live = bus.subscribe(Stream::Ase, ">", 1).await.unwrap();
    let total = messages / BATCH / publishers * publishers * BATCH;
    let reader = tokio::spawn(async move {
        let mut read = 0;
        while read < total {
            read += live.next_batch(1024, Duration::from_secs(5)).await.unwrap().len();
        }
    });
    let started = Instant::now();
    let tasks: Vec<_> = (0..publishers)
        .map(|publisher| {
            let (bus, payload) = (Arc::clone(&bus), payload.clone());
            tokio::spawn(async move {
                for round in 0..messages / BATCH / publishers {
                    let subject = format!("ase.{:02}.t-{}.authorize_decision", publisher, round % 50);
                    let batch =
                        (0..BATCH).map(|_| Message::new(subject.as_str(), payload.clone()).with_id(new_event_id().to_string()));
                    for result in bus.publish(Stream::Ase, batch.collect()).await {
                        result.unwrap();
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let published = started.elapsed();
    reader.await.unwrap();
    println!(
        "publish, {publishers} x {BATCH}: {:>9.0} messages/s; live reader done {:?} later",
        rate(total, published),
        started.elapsed() - published
    );

    let started = Instant::now();
    let mut cold = bus.subscribe(Stream::Ase, ">", 1).await.unwrap();
    let mut read = 0;
    while read < total {
        read += cold.next_batch(1024, Duration::ZERO).await.unwrap().len();
    }
    println!("read from the file:  {:>9.0} messages/s", rate(total, started.elapsed()));

    let started = Instant::now();
    for _ in 0..500 {
        bus.publish(Stream::Ase, vec![Message::new("ase.00.t.x", payload.clone())]).await.remove(0).unwrap();
    }
    println!("one by one:          {:>9.0} messages/s", rate(500, started.elapsed()));
}

fn rate(count: usize, elapsed: Duration) -> f64 {
    count as f64 / elapsed.as_secs_f64()
}
