//! The archive consumer: every security event of the bus into the history that decisions, receipts and audit are read from.
//! Promises that a malformed event is set aside and the others go on; never changes a byte of an event.

use std::sync::Arc;
use std::time::Duration;

use aegis_bus::{Delivered, Stream, subject};
use aegis_model::WireEvent;
use aegis_store::{HistoryRow, StoreError, Wire};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::control::{Control, ControlError};
use crate::follow::Follower;
use crate::gaps::Gaps;

/// Name of this consumer on the bus.
pub(crate) const CONSUMER: &str = "control-archive";
/// How long one read waits.
const WAIT: Duration = Duration::from_millis(500);
/// Events taken at once.
const BATCH: usize = 1024;
/// Batches are at least this far apart, so that events gather; the first after a pause is taken at once.
const SPACING: Duration = Duration::from_millis(10);
/// The same behind a batch of this many: under load, where few large commits cost far less than many small ones.
const BUSY: usize = 64;
const BUSY_SPACING: Duration = Duration::from_millis(50);
/// How often the position is noted under load. What is read again after a stop is known already.
const SAVE_EVERY: Duration = Duration::from_millis(250);

/// Follows the stream until stopped.
pub(crate) async fn run(control: Arc<Control>, mut stop: watch::Receiver<bool>) {
    let mut follower = Follower::new(Arc::clone(&control.bus), Stream::Ase, CONSUMER, "ase.>");
    let mut saved = Instant::now();
    let mut begun = false;
    let mut gaps = Gaps::default();
    loop {
        if !begun {
            // The history is a file of its own: without its rows, whatever the bus still has is read again.
            begun = rewind_for_an_empty_history(&control).await.is_ok();
        }
        tokio::select! {
            outcome = step(&control, &mut follower, &mut saved, &mut gaps) => match outcome {
                Ok(()) => {
                    follower.recovered();
                    Control::set_healthy(&control.archive_ok, true);
                }
                Err(error) => {
                    tracing::warn!(%error, "archive consumer stands still");
                    Control::set_healthy(&control.archive_ok, false);
                    tokio::select! {
                        () = follower.back_off() => {}
                        _ = stop.changed() => return,
                    }
                }
            },
            _ = stop.changed() => return,
        }
    }
}

/// Longest name of a lane, bytes: tenant, edge and start.
const MAX_LANE: usize = 256;

async fn rewind_for_an_empty_history(control: &Control) -> Result<(), ControlError> {
    if control.store.history_is_empty().await? {
        control.bus.set_consumer_position(Stream::Ase, CONSUMER, 0).await.map_err(failed)?;
    }
    Ok(())
}

async fn step(control: &Control, follower: &mut Follower, saved: &mut Instant, gaps: &mut Gaps) -> Result<(), ControlError> {
    gaps.ask(control, control.clock.now());
    control.metrics.history_gaps.set(i64::try_from(gaps.open()).unwrap_or(i64::MAX));
    // While a position waits to be noted, a short wait: it is noted at the first pause.
    let wait = if follower.is_saved() { WAIT } else { SPACING };
    let batch = follower.next(BATCH, wait).await.map_err(failed)?;
    let started = Instant::now();
    if batch.is_empty() {
        *control.caught_up.lock() = Some(started);
        *saved = started;
        return follower.save(follower.read_up_to()).await.map_err(failed);
    }
    let mut rows = Vec::with_capacity(batch.len());
    let mut origins = Vec::with_capacity(batch.len());
    for delivered in &batch {
        match read(control, delivered) {
            Ok(row) => {
                rows.push(row);
                origins.push(delivered);
            }
            Err(reason) => control.dead_letter(Stream::Ase, delivered, &reason).await.map_err(failed)?,
        }
    }
    look_at_lanes(control, gaps, &rows).await?;
    insert(control, &rows, &origins).await?;
    if batch.len() < BATCH {
        *control.caught_up.lock() = Some(started);
    }
    control.arrived.notify_waiters();
    if saved.elapsed() >= SAVE_EVERY {
        *saved = Instant::now();
        follower.save(follower.read_up_to()).await.map_err(failed)?;
    }
    if batch.len() < BATCH {
        tokio::time::sleep_until(started + if batch.len() < BUSY { SPACING } else { BUSY_SPACING }).await;
    }
    Ok(())
}

fn failed(error: impl std::fmt::Display) -> ControlError {
    ControlError::Failed(error.to_string())
}

/// Notes how far each lane is, before its rows are kept.
async fn look_at_lanes(control: &Control, gaps: &mut Gaps, rows: &[HistoryRow]) -> Result<(), ControlError> {
    let now = control.clock.now();
    for row in rows {
        let (Some(lane), Some(seq)) = (&row.lane, row.seq) else { continue };
        if !gaps.knows(lane) {
            gaps.begin(lane, control.store.lane_head(&row.tenant_id, lane).await?);
        }
        gaps.took(lane, seq, now);
    }
    Ok(())
}

/// All in one transaction; if the store refuses one for what it is, that one is set aside.
async fn insert(control: &Control, rows: &[HistoryRow], origins: &[&Delivered]) -> Result<(), ControlError> {
    match control.store.insert_history(rows).await {
        Ok(_) => return Ok(()),
        Err(error) if is_the_events_fault(&error) => {}
        Err(error) => return Err(error.into()),
    }
    for (row, delivered) in rows.iter().zip(origins) {
        match control.store.insert_history(std::slice::from_ref(row)).await {
            Ok(_) => {}
            Err(error) if is_the_events_fault(&error) => {
                control.dead_letter(Stream::Ase, delivered, &error.to_string()).await.map_err(failed)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Whether trying again could not help: a constraint, not a full disk.
fn is_the_events_fault(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::UnknownTenant(_)
            | StoreError::WrongTenant { .. }
            | StoreError::Taken(_)
            | StoreError::Invalid { .. }
            | StoreError::LimitReached { .. }
    )
}

/// An event as the history keeps it.
fn read(control: &Control, delivered: &Delivered) -> Result<HistoryRow, String> {
    let wire = WireEvent::read(&delivered.payload).map_err(|error| error.to_string())?;
    let event = wire.event().map_err(|error| error.to_string())?;
    if delivered.subject != subject::ase(&event.tenant_id, event.kind) {
        return Err("subject and event disagree about tenant or kind".to_owned());
    }
    if event.lane.as_ref().is_some_and(|lane| lane.len() > MAX_LANE || lane.chars().any(char::is_control)) {
        return Err("its lane has no name that a lane can have".to_owned());
    }
    control.label_run(&event);
    Ok(HistoryRow {
        tenant_id: event.tenant_id,
        event_id: event.event_id,
        kind: event.kind,
        ts: event.ts,
        lane: event.lane,
        seq: event.seq,
        agent_id: event.agent_id,
        run_id: event.run_id,
        decision: event.decision,
        receipt_hash: event.receipt_hash,
        bus_seq: delivered.seq,
        wire: match &delivered.kept {
            Some(kept) if control.config.keepers.contains_key(&kept.by) => {
                Wire::Kept { by: Arc::clone(&kept.by), position: kept.position }
            }
            _ => Wire::Text(wire.text().into()),
        },
    })
}
