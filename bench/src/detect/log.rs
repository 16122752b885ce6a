//! A log on the disk: events as a real ledger sealed them, a line each, and what must be told of them. Read back, each is proved and linked by
//! detection's own first stage.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aegis_detect::{Stage, VerifyStage};
use aegis_keys::{KeyRing, SigningKey};
use aegis_ledger::verify::LaneHeads;
use aegis_ledger::{Draft, Durability, Ledger, LedgerConfig, OutboxItem};
use aegis_model::{CONTROL, EventKind, Phase, SecurityEvent, SystemClock, Timestamp, WireEvent};
use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::calls::EDGE;
use super::traffic::{Events, Expected, Traffic};
use crate::instance::data_folder;

/// The key of edge and control, known to whoever reads a log again.
const SEED: [u8; 32] = [7; 32];
/// Drafts in the ledger's queue, which has room for twice as many.
const IN_FLIGHT: usize = 4096;
/// Receipts read at a time.
const PAGE: usize = 10_000;

/// What stands beside the events.
#[derive(Debug, Serialize, Deserialize)]
struct Beside {
    events: usize,
    expected: Vec<Expected>,
    known_whole: bool,
}

/// A log, read and proved.
#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) events: Vec<SecurityEvent>,
    pub(crate) expected: Vec<Expected>,
    /// Nothing may be told but what is expected.
    pub(crate) known_whole: bool,
    /// What reading and proving an event costs.
    pub(crate) proof_us: f64,
}

fn beside(path: &Path) -> PathBuf {
    path.with_extension("expected.json")
}

/// Seals about `count` events (see `Traffic::events`), and writes them to `path`.
pub(crate) async fn seal(traffic: Traffic, count: usize, path: &Path) -> anyhow::Result<()> {
    let Events { events, expected } = traffic.events(count)?;
    let folder = data_folder()?;
    let of_edge = LedgerConfig::new(folder.path().join("edge.db"), EDGE, "edge");
    let of_control = LedgerConfig::new(folder.path().join("control.db"), CONTROL, CONTROL);
    let edge = Ledger::open(of_edge, SigningKey::from_seed(&SEED), Arc::new(SystemClock)).await?;
    let control = Ledger::open(of_control, SigningKey::from_seed(&SEED), Arc::new(SystemClock)).await?;
    let mut waiting = VecDeque::new();
    for event in events {
        if waiting.len() >= IN_FLIGHT
            && let Some(oldest) = waiting.pop_front()
        {
            committed(oldest).await?;
        }
        let is_outcome = event.kind == EventKind::ToolOutcome;
        let (ledger, phase) = if is_outcome { (&control, Phase::Outcome) } else { (&edge, Phase::Decision) };
        waiting.push_back(ledger.try_submit(Draft::new(event, phase), Durability::Required)?);
    }
    for pending in waiting {
        committed(pending).await?;
    }
    let mut file = BufWriter::new(File::create(path).with_context(|| format!("cannot make {}", path.display()))?);
    let (mut of_edge, mut of_control) = (Receipts::of(&edge), Receipts::of(&control));
    let mut written = 0;
    loop {
        // In the order of time, as a bus would have them.
        let next = match (of_edge.next_ts().await?, of_control.next_ts().await?) {
            (Some(edge), Some(control)) if control < edge => of_control.page.pop_front(),
            (Some(_), _) => of_edge.page.pop_front(),
            (None, _) => of_control.page.pop_front(),
        };
        let Some(item) = next else { break };
        file.write_all(item.sealed.wire.as_bytes())?;
        file.write_all(b"\n")?;
        written += 1;
    }
    file.flush()?;
    edge.close().await?;
    control.close().await?;
    let beside_it = Beside { events: written, expected, known_whole: traffic.is_known_whole() };
    std::fs::write(beside(path), serde_json::to_vec(&beside_it)?)?;
    Ok(())
}

/// What a ledger sealed, a page at a time.
struct Receipts<'a> {
    ledger: &'a Ledger,
    after: i64,
    page: VecDeque<OutboxItem>,
}

impl<'a> Receipts<'a> {
    const fn of(ledger: &'a Ledger) -> Self {
        Self { ledger, after: 0, page: VecDeque::new() }
    }

    /// The time of the first in `page`, which is empty at the end alone.
    async fn next_ts(&mut self) -> anyhow::Result<Option<Timestamp>> {
        if self.page.is_empty() {
            self.page = self.ledger.read_outbox(self.after, PAGE).await?.into();
            self.after = self.page.back().map_or(self.after, |last| last.row);
        }
        Ok(self.page.front().map(|item| item.sealed.ts))
    }
}

async fn committed(pending: aegis_ledger::PendingReceipt) -> anyhow::Result<()> {
    pending.await.context("the ledger did not seal an event")?;
    Ok(())
}

/// Reads and proves a log, or the first `most` events of it. The bus is said to have stored each at its own time.
pub(crate) fn read(path: &Path, most: usize) -> anyhow::Result<Log> {
    let Beside { events: there_are, expected, known_whole } = serde_json::from_slice(&std::fs::read(beside(path))?)?;
    let ring = KeyRing::new([SigningKey::from_seed(&SEED).verifying_key()]);
    let mut stage = VerifyStage::new(ring, LaneHeads::default());
    let mut file = BufReader::new(File::open(path).with_context(|| format!("cannot open {}", path.display()))?);
    let mut events = Vec::with_capacity(there_are.min(most));
    let (mut line, mut proving) = (String::new(), Duration::ZERO);
    while events.len() < most {
        line.clear();
        if file.read_line(&mut line)? == 0 {
            break;
        }
        let started = Instant::now();
        let wire = WireEvent::read(line.trim_end().as_bytes())?;
        let mut event = wire.event()?;
        event.verified = false;
        event.bus_ts = Some(event.ts);
        let judged = stage.take(&wire, &mut event);
        proving += started.elapsed();
        if judged != Stage::Kept || !event.verified {
            bail!("event {} does not prove itself: {judged:?}", event.event_id);
        }
        events.push(event);
    }
    let proof_us = proving.as_secs_f64() * 1e6 / events.len().max(1) as f64;
    Ok(Log { events, expected, known_whole, proof_us })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_sealed_is_read_back_proved_and_one_changed_byte_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        seal(Traffic::Even(2), 300, &path).await.unwrap();
        let log = read(&path, usize::MAX).unwrap();
        // Each lane begins with an event of its own, and each tenant has one of the edge's and one of control's.
        let opened = log.events.iter().filter(|event| event.kind == EventKind::LaneOpen).count();
        assert_eq!((opened, log.events.len()), (4, Traffic::Even(2).events(300).unwrap().events.len() + 4));
        assert!(log.events.is_sorted_by_key(|event| event.ts));
        assert!(log.known_whole && !log.expected.is_empty());
        assert_eq!(read(&path, 10).unwrap().events.len(), 10);

        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replacen("u-4711", "u-4712", 1)).unwrap();
        assert!(read(&path, usize::MAX).is_err());
    }
}
