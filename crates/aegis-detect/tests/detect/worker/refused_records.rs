//! Records of rules that are refused are told of, to those whom they could have changed something for.

use std::sync::Arc;
use std::time::Duration;

use aegis_bus::{Bus, EmbeddedBus, Message, Stream, subject};
use aegis_detect::{RecordFault, RefusedRecord, RefusedRecords, Worker, WorkerConfig};
use aegis_keys::{SigningKey, sign_notice};
use aegis_model::{CommonRuleRecord, RuleRecord, TenantId, partition_of};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::own_rules::{Texts, never, own_rule, place, put, record_of};
use super::{DEADLINE, Line};
use crate::ground::control_key;

/// Control, as far as it takes what it is told.
#[derive(Debug, Default)]
struct Told {
    records: Mutex<Vec<RefusedRecord>>,
    /// It goes without an answer.
    is_deaf: Mutex<bool>,
}

impl RefusedRecords for Told {
    fn tell(&self, refused: &RefusedRecord) -> oneshot::Receiver<()> {
        let (told, answer) = oneshot::channel();
        if !*self.is_deaf.lock() {
            self.records.lock().push(refused.clone());
            told.send(()).unwrap();
        }
        answer
    }
}

impl Told {
    fn of(&self) -> Vec<(RecordFault, u32, Option<TenantId>)> {
        let records = self.records.lock();
        let mut told: Vec<_> = records.iter().map(|told| (told.fault, told.partition, told.tenant_id.clone())).collect();
        told.sort();
        told
    }

    /// Waits until so much was told, and asserts what.
    async fn until(&self, expected: &[(RecordFault, u32, Option<TenantId>)]) {
        let start = Instant::now();
        while self.records.lock().len() < expected.len() {
            assert!(start.elapsed() < DEADLINE, "{:?}", self.of());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(self.of(), expected);
    }
}

fn worker(line: &Line, bus: &Arc<EmbeddedBus>, told: &Arc<Told>) -> Worker {
    let mut config = WorkerConfig::new(Arc::clone(&line.clock));
    config.checkpoint_ms = 50;
    config.texts = Some(Arc::new(Texts(vec![own_rule(4, "log_only"), own_rule(4, "disabled")])));
    config.refused_records = Some(Arc::clone(told) as Arc<dyn RefusedRecords>);
    line.worker_over(bus, never(), config)
}

fn acme() -> TenantId {
    TenantId::new("acme").unwrap()
}

/// What control signs of acme's own rule, and of one that every tenant has.
fn signed(mode: &str, revision: i64) -> Vec<u8> {
    sign_notice(&control_key(), &record_of(&own_rule(4, mode), revision)).unwrap()
}

fn signed_of_all(revision: i64) -> Vec<u8> {
    let hash = aegis_canon::sha256_hex(b"");
    let record =
        CommonRuleRecord { partition: partition_of(&acme()), rule_id: "T-9".into(), revision, hash, text: String::new() };
    sign_notice(&control_key(), &record).unwrap()
}

#[tokio::test]
async fn each_fault_is_told_once_to_those_whom_it_could_concern() {
    let folder = tempfile::tempdir().unwrap();
    let line = Line::open(folder.path()).await;
    let told = Arc::new(Told::default());
    let running = worker(&line, &line.bus, &told);
    // What control says, and says again, is no fault.
    for revision in [7, 7] {
        put(&line, place(), signed("log_only", revision)).await;
        put(&line, place(), signed_of_all(revision)).await;
    }
    assert_eq!(line.caught_up(&running).await.rule_records_refused, 0);

    let off = record_of(&own_rule(4, "disabled"), 8);
    let altered = RuleRecord { text: own_rule(9, "disabled"), ..off.clone() };
    let mut forged: serde_json::Value = serde_json::from_slice(&signed("disabled", 8)).unwrap();
    forged["revision"] = json!(9);
    let bad = [
        b"no json".to_vec(),
        serde_json::to_vec(&off).unwrap(),
        sign_notice(&SigningKey::from_seed(&[66; 32]), &off).unwrap(),
        serde_json::to_vec(&forged).unwrap(),
        sign_notice(&control_key(), &altered).unwrap(),
        signed("disabled", 6),
        signed_of_all(6),
    ];
    let elsewhere = (partition_of(&acme()) + 1) % 64;
    for _ in 0..3 {
        for payload in &bad {
            put(&line, place(), payload.clone()).await;
        }
        put(&line, subject::ruleset(elsewhere), signed("disabled", 8)).await;
    }
    let stats = line.caught_up(&running).await;
    assert_eq!((stats.rule_records_refused, stats.malformed), (24, 24));
    let here = partition_of(&acme());
    let mut expected = vec![
        (RecordFault::BadSignature, here, None),
        (RecordFault::UnknownKey, here, None),
        (RecordFault::Malformed, here, None),
        (RecordFault::Unsigned, here, None),
        (RecordFault::Misplaced, elsewhere, None),
        (RecordFault::Altered, here, None),
        // Whose the older record is control has signed; one that every tenant has concerns all.
        (RecordFault::Older, here, None),
        (RecordFault::Older, here, Some(acme())),
    ];
    expected.sort();
    told.until(&expected).await;
    assert_eq!(line.read_stream(Stream::Dlq, "dlq.>").await.len(), 24, "each is put aside");
    running.stop().await;
}

#[tokio::test]
async fn what_control_did_not_take_is_told_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let line = Line::open(folder.path()).await;
    let told = Arc::new(Told::default());
    *told.is_deaf.lock() = true;
    let running = worker(&line, &line.bus, &told);
    put(&line, place(), b"no json".to_vec()).await;
    line.caught_up(&running).await;
    running.stop().await;
    assert!(told.of().is_empty());
    *told.is_deaf.lock() = false;
    let running = worker(&line, &line.bus, &told);
    told.until(&[(RecordFault::Malformed, partition_of(&acme()), None)]).await;
    running.stop().await;
}

/// A stream that was made anew has what control said before in its order: nobody put the older there again.
#[tokio::test]
async fn a_stream_that_is_read_again_has_nothing_older_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let line = Line::open(folder.path()).await;
    let told = Arc::new(Told::default());
    let running = worker(&line, &line.bus, &told);
    for (mode, revision) in [("log_only", 7), ("disabled", 8)] {
        put(&line, place(), signed(mode, revision)).await;
    }
    line.caught_up(&running).await;
    running.stop().await;

    // Another stream, with the checkpoint of before.
    let other = tempfile::tempdir().unwrap();
    let anew =
        EmbeddedBus::open(&other.path().join("bus.db"), aegis_bus::EmbeddedLimits::default(), Arc::clone(&line.clock)).await;
    let anew = anew.unwrap();
    crate::ground::put_checkpoint(&anew, &crate::ground::checkpoint(&line.bus).await.unwrap()).await;
    let publish = async |payload: Vec<u8>| {
        anew.publish(Stream::Ase, vec![Message::new(place(), payload)]).await.remove(0).unwrap();
    };
    for (mode, revision) in [("log_only", 7), ("disabled", 8)] {
        publish(signed(mode, revision)).await;
    }
    let running = worker(&line, &anew, &told);
    let taken = async |seq: u64| {
        let start = Instant::now();
        while running.stats().position < seq {
            assert!(start.elapsed() < DEADLINE, "{:?}", running.stats().trouble);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        running.stats().rule_records_refused
    };
    assert_eq!(taken(2).await, 0);
    // What comes behind that is somebody's who puts it back.
    publish(signed("log_only", 7)).await;
    assert_eq!(taken(3).await, 1);
    told.until(&[(RecordFault::Older, partition_of(&acme()), Some(acme()))]).await;
    running.stop().await;
}
