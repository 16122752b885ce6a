//! Promises of buckets: revisions, compare-and-set, watches.

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::timeout;

use super::{DEADLINE, Violation, ensure, text};
use crate::{Bucket, Bus, BusError, KvWatch, MAX_PAYLOAD};

async fn next(watch: &mut Box<dyn KvWatch>) -> Result<(String, Bytes, u64), Violation> {
    match timeout(DEADLINE, watch.next()).await {
        Ok(change) => Ok(change?),
        Err(_elapsed) => Err(Violation("a watch did not deliver".to_owned())),
    }
}

pub(super) async fn values_have_growing_revisions(bus: Arc<dyn Bus>) -> Result<(), Violation> {
    ensure!(bus.kv_get(Bucket::Control, "t.a").await?.is_none(), "an absent key has a value");
    let first = bus.kv_put(Bucket::Control, "t.a", text("1")).await?;
    let second = bus.kv_put(Bucket::Control, "t.b", text("2")).await?;
    let third = bus.kv_put(Bucket::Control, "t.a", text("3")).await?;
    ensure!(0 < first && first < second && second < third, "revisions {first}, {second}, {third}");
    ensure!(bus.kv_get(Bucket::Control, "t.a").await? == Some((text("3"), third)), "not the last value");
    let all = bus.kv_all(Bucket::Control, ">").await?;
    ensure!(all == [("t.a".to_owned(), text("3"), third), ("t.b".to_owned(), text("2"), second)], "the bucket holds {all:?}");
    ensure!(bus.kv_all(Bucket::Leases, ">").await?.is_empty(), "buckets share keys");
    let too_large = bus.kv_put(Bucket::Control, "t.c", Bytes::from(vec![0; MAX_PAYLOAD + 1])).await;
    ensure!(matches!(too_large, Err(BusError::TooLarge { .. })), "an oversized value got {too_large:?}");
    Ok(())
}

pub(super) async fn an_update_needs_the_revision(bus: Arc<dyn Bus>) -> Result<(), Violation> {
    let created = bus.kv_update(Bucket::Leases, "detect.00", text("worker-1"), 0).await?;
    let taken = bus.kv_update(Bucket::Leases, "detect.00", text("worker-2"), 0).await;
    ensure!(matches!(taken, Err(BusError::WrongRevision { actual, .. }) if actual == created), "a taken lease got {taken:?}");
    let renewed = bus.kv_update(Bucket::Leases, "detect.00", text("worker-1"), created).await?;
    let stale = bus.kv_update(Bucket::Leases, "detect.00", text("worker-1"), created).await;
    ensure!(matches!(stale, Err(BusError::WrongRevision { actual, .. }) if actual == renewed), "a stale renewal got {stale:?}");
    Ok(())
}

pub(super) async fn a_watch_gives_current_values_then_changes(bus: Arc<dyn Bus>) -> Result<(), Violation> {
    let a = bus.kv_put(Bucket::Containment, "t.a", text("a")).await?;
    let b = bus.kv_put(Bucket::Containment, "t.b", text("b")).await?;
    let mut watch = bus.kv_watch(Bucket::Containment, ">").await?;
    let current = [next(&mut watch).await?, next(&mut watch).await?];
    ensure!(current == [("t.a".to_owned(), text("a"), a), ("t.b".to_owned(), text("b"), b)], "the watch began with {current:?}");
    let waiting = tokio::spawn(async move { next(&mut watch).await });
    bus.kv_put(Bucket::Control, "t.a", text("another bucket")).await?;
    let c = bus.kv_put(Bucket::Containment, "t.a", text("c")).await?;
    let change = waiting.await.map_err(|e| Violation(format!("the watcher ended: {e}")))??;
    ensure!(change == ("t.a".to_owned(), text("c"), c), "the watch went on with {change:?}");
    Ok(())
}

pub(super) async fn a_filter_shows_its_keys_alone(bus: Arc<dyn Bus>) -> Result<(), Violation> {
    for key in ["acme.tool.1", "beta.tool.1", "acme.agent.2", "acmex.tool.1"] {
        bus.kv_put(Bucket::Control, key, text(key)).await?;
    }
    let all = bus.kv_all(Bucket::Control, "acme.>").await?;
    let keys: Vec<&str> = all.iter().map(|(key, ..)| key.as_str()).collect();
    ensure!(keys == ["acme.agent.2", "acme.tool.1"], "the filter showed {keys:?}");
    ensure!(bus.kv_all(Bucket::Control, "gamma.>").await?.is_empty(), "a filter without keys showed some");
    let mut watch = bus.kv_watch(Bucket::Control, "acme.>").await?;
    let current = [next(&mut watch).await?.0, next(&mut watch).await?.0];
    ensure!(current == ["acme.tool.1", "acme.agent.2"], "the watch began with {current:?}");
    bus.kv_put(Bucket::Control, "beta.tool.1", text("not for it")).await?;
    bus.kv_put(Bucket::Control, "acme.tool.3", text("for it")).await?;
    let change = next(&mut watch).await?;
    ensure!(change.0 == "acme.tool.3", "the watch went on with {change:?}");
    ensure!(bus.kv_watch(Bucket::Control, "acme.>.x").await.is_err(), "`>` was accepted in the middle of a filter");
    Ok(())
}

pub(super) async fn a_slow_watch_ends_at_the_last_value(bus: Arc<dyn Bus>) -> Result<(), Violation> {
    let mut watch = bus.kv_watch(Bucket::Trust, ">").await?;
    let mut last = 0;
    for i in 0..500 {
        last = bus.kv_put(Bucket::Trust, "t.run", text(&i.to_string())).await?;
    }
    let mut revision = 0;
    loop {
        let change = next(&mut watch).await?;
        ensure!(change.2 > revision, "a watch went back from {revision} to {}", change.2);
        revision = change.2;
        if revision == last {
            ensure!(change.1 == "499", "the last value came as {:?}", change.1);
            return Ok(());
        }
    }
}

pub(super) async fn keys_keep_to_their_alphabet(bus: Arc<dyn Bus>) -> Result<(), Violation> {
    for bad in ["", ".", "a.", "a b", "a.*", ">", "ä", "a\0b"] {
        let result = bus.kv_put(Bucket::Control, bad, text("x")).await;
        ensure!(matches!(result, Err(BusError::Invalid { .. })), "key {bad:?} got {result:?}");
    }
    Ok(())
}

pub(super) async fn what_is_told_is_heard_by_those_who_listen(bus: Arc<dyn Bus>) -> Result<(), Violation> {
    bus.tell("hb.early", text("nobody listens")).await?;
    let mut one = bus.hear("hb.*").await?;
    let mut other = bus.hear("ack.a").await?;
    bus.tell("hb.a", text("1")).await?;
    bus.tell("ack.b", text("for others")).await?;
    bus.tell("ack.a", text("2")).await?;
    for (hearing, subject, payload) in [(&mut one, "hb.a", "1"), (&mut other, "ack.a", "2")] {
        let heard = timeout(DEADLINE, hearing.next()).await.map_err(|_elapsed| Violation("nothing was heard".to_owned()))??;
        ensure!(heard.subject == subject && heard.payload == text(payload), "heard {heard:?} on {subject}");
    }
    for bad in ["", "hb.*", "hb.>", "hb..a", "hb. a"] {
        let told = bus.tell(bad, text("x")).await;
        ensure!(matches!(told, Err(BusError::Invalid { .. })), "telling {bad:?} got {told:?}");
    }
    let too_large = bus.tell("hb.a", Bytes::from(vec![0; MAX_PAYLOAD + 1])).await;
    ensure!(matches!(too_large, Err(BusError::TooLarge { .. })), "an oversized notice got {too_large:?}");
    Ok(())
}
