//! The archive consumer: every security event of the bus into the history that decisions, receipts and audit are read from.
//! Promises that a malformed event is set aside and the others go on; never changes a byte of an event.

use std::sync::Arc;
use std::time::Duration;

use aegis_bus::gaps::Gaps;
use aegis_bus::{Delivered, Stream, subject};
use aegis_ledger::verify::Prover;
use aegis_model::{EventKind, LaneReach, SecurityEvent, is_derived};
use aegis_store::{HistoryRow, Standing, StoreError, Wire};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::control::{Control, ControlError};
use crate::follow::Follower;
use crate::progress::Progress;

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
    let mut follower = Follower::new(Arc::clone(&control.history_bus), Stream::Ase, CONSUMER, "ase.>");
    let mut saved = Instant::now();
    let mut begun = false;
    let mut lanes = Lanes { gaps: Gaps::default(), prover: Prover::new(control.ring.clone()) };
    let mut progress = Progress::default();
    loop {
        if !begun {
            begun = begin(&control, &mut lanes.gaps).await.is_ok();
        }
        tokio::select! {
            outcome = step(&control, &mut follower, &mut saved, &mut lanes, &mut progress) => match outcome {
                Ok(()) => {
                    follower.recovered();
                    Control::set_healthy(&control.archive_ok, true);
                }
                Err(error) => {
                    tracing::warn!(%error, "archive consumer stands still");
                    Control::set_healthy(&control.archive_ok, false);
                    // Some of the batch may be there, and not all: of its lanes the history has what it noted with rows.
                    lanes.gaps.not_written();
                    begun = false;
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

/// What follows the lanes: who says that a receipt has come must prove it.
struct Lanes {
    gaps: Gaps,
    prover: Prover,
}

/// Takes up what an earlier process left.
async fn begin(control: &Control, gaps: &mut Gaps) -> Result<(), ControlError> {
    // The history is a file of its own: without its rows, whatever the bus still has is read again.
    if control.store.history_is_empty().await? {
        control.history_bus.set_consumer_position(Stream::Ase, CONSUMER, 0).await.map_err(failed)?;
    }
    for lane in control.store.lanes_with_gaps().await? {
        gaps.begin(lane, control.clock.now());
    }
    Ok(())
}

async fn step(
    control: &Control,
    follower: &mut Follower,
    saved: &mut Instant,
    lanes: &mut Lanes,
    progress: &mut Progress,
) -> Result<(), ControlError> {
    lanes.gaps.ask(control, control.clock.now());
    control.metrics.history_gaps.set(i64::try_from(lanes.gaps.open()).unwrap_or(i64::MAX));
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
        match read(control, delivered, &mut lanes.prover) {
            Ok(Read { row, of_lane }) => {
                if row.standing != Standing::Unproved {
                    look_at_lane(control, &mut lanes.gaps, &row, of_lane.as_deref()).await?;
                }
                rows.push(row);
                origins.push(delivered);
            }
            Err(reason) => control.dead_letter(Stream::Ase, delivered, &reason).await.map_err(failed)?,
        }
    }
    // Before the history has what said so: from then on it is no news.
    if control.lives.take_leaver_read()
        && let Err(problem) = control.keep_leavers().await
    {
        control.lives.leaver_not_kept();
        return Err(problem.into());
    }
    insert(control, &rows, &origins, &mut lanes.gaps).await?;
    lanes.gaps.written();
    let as_of = progress.passed(follower.read_up_to());
    if batch.len() < BATCH {
        *control.caught_up.lock() = Some(started);
    } else if as_of.is_some() {
        let mut caught_up = control.caught_up.lock();
        *caught_up = as_of.max(*caught_up);
    }
    // Where batches are full, nothing else tells how far behind it is.
    if batch.len() == BATCH
        && progress.is_due(started)
        && let Ok(newest) = control.history_bus.last_seq(Stream::Ase).await
    {
        progress.mark(newest, started);
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

/// Notes how far a lane is with a proved receipt that is about to be kept, and what the lane's beginning or end, `of_lane`, says of its edge. What the history
/// has already says nothing: whoever may publish for the tenant can send it again.
async fn look_at_lane(
    control: &Control,
    gaps: &mut Gaps,
    row: &HistoryRow,
    of_lane: Option<&SecurityEvent>,
) -> Result<(), ControlError> {
    let (Some(lane), Some(seq)) = (&row.lane, row.seq) else { return Ok(()) };
    let now = control.clock.now();
    if !gaps.knows(lane) {
        let known = control.store.history_lane(&row.tenant_id, lane).await?;
        gaps.begin(known.unwrap_or_else(|| LaneReach::none(row.tenant_id.clone(), lane.clone())), now);
    }
    if let Some(event) = of_lane
        && !gaps.has(lane, seq)
    {
        control.lives.read(event, row.is_proved());
    }
    gaps.took(lane, seq, now);
    Ok(())
}

/// All in one transaction; if the store refuses one for what it is, that one is set aside, and its lane does not have it: whoever hears that the history
/// has a lane may delete it elsewhere. What is not refused has its place in its lane, whatever else has its id.
async fn insert(control: &Control, rows: &[HistoryRow], origins: &[&Delivered], gaps: &mut Gaps) -> Result<(), ControlError> {
    match control.store.insert_history(rows, &gaps.changed()).await {
        Ok(_) => return Ok(()),
        Err(error) if is_the_events_fault(&error) => {}
        Err(error) => return Err(error.into()),
    }
    for (row, delivered) in rows.iter().zip(origins) {
        match control.store.insert_history(std::slice::from_ref(row), &[]).await {
            Ok(_) => {}
            Err(error) if is_the_events_fault(&error) => {
                control.dead_letter(Stream::Ase, delivered, &error.to_string()).await.map_err(failed)?;
                not_kept(control, gaps, row);
            }
            Err(error) => return Err(error.into()),
        }
    }
    control.store.insert_history(&[], &gaps.changed()).await?;
    Ok(())
}

/// A row that is not in the history, and whose lane was noted to be as far.
fn not_kept(control: &Control, gaps: &mut Gaps, row: &HistoryRow) {
    let (Some(lane), Some(seq @ 1..)) = (&row.lane, row.seq) else { return };
    if row.standing == Standing::Unproved {
        return;
    }
    tracing::warn!(lane, seq, event_id = %row.event_id, "a receipt is not in the history: its store refused it");
    gaps.lacks(lane, seq, control.clock.now());
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

/// What was read of a message.
struct Read {
    row: HistoryRow,
    /// The event, if it begins or ends a lane.
    of_lane: Option<Arc<SecurityEvent>>,
}

/// An event as the history keeps it. What stands in a ledger of this process needs no proof.
fn read(control: &Control, delivered: &Delivered, prover: &mut Prover) -> Result<Read, String> {
    let read = delivered.event().map_err(|error| error.to_string())?;
    let event = read.unmarked();
    if !subject::is_ase(&delivered.subject, event.tenant_id(), event.kind()) {
        return Err("subject and event disagree about tenant or kind".to_owned());
    }
    if !event.names_a_lane_or_none() {
        return Err("its lane has no name that a lane can have".to_owned());
    }
    if event.lane().is_some() != event.seq().is_some() {
        return Err("it has a lane and no place in it, or a place and no lane".to_owned());
    }
    // Who asks for a receipt by its id gets no observation that somebody put under it, having read it in an answer.
    if event.lane().is_none() && !is_derived(event.event_id()) {
        return Err("it claims no lane, and has an id as only receipts have".to_owned());
    }
    control.label_run(event);
    let kept = delivered.kept.as_ref().filter(|kept| control.config.keepers.contains_key(&kept.by));
    let is_sealed = event.lane().is_some() && (kept.is_some() || prover.prove(&read.wire()).is_some());
    let standing = match (is_sealed, event.is_for_its_lane_to_say()) {
        (false, _) => Standing::Unproved,
        (true, true) => Standing::Own,
        (true, false) => Standing::Foreign,
    };
    let of_lane = matches!(event.kind(), EventKind::LaneOpen | EventKind::LaneClose).then(|| Arc::clone(read.event()));
    let row = HistoryRow {
        tenant_id: event.tenant_id().clone(),
        event_id: event.event_id(),
        kind: event.kind(),
        ts: event.ts(),
        lane: event.lane().map(str::to_owned),
        seq: event.seq(),
        agent_id: event.agent_id().map(str::to_owned),
        run_id: event.run_id().map(str::to_owned),
        decision: event.decision(),
        receipt_hash: event.receipt_hash().map(str::to_owned),
        bus_seq: delivered.seq,
        bus_ts: Some(delivered.bus_ts),
        standing,
        wire: match kept {
            Some(kept) => Wire::Kept { by: Arc::clone(&kept.by), position: kept.position },
            None => Wire::Text(read.wire().text().into()),
        },
    };
    Ok(Read { row, of_lane })
}
