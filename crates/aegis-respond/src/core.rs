//! What the tasks of a responder share: its rooms, its counters, and which commands are being asked for right now.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aegis_bus::Bus;
use aegis_model::Clock;
use aegis_store::Store;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::ContainmentRequests;

/// Commands asked for at a time, at most; more stay pending until some have their answer.
const MAX_IN_FLIGHT: usize = 256;

pub(crate) struct Core {
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) store: Store,
    pub(crate) requests: Arc<dyn ContainmentRequests>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) counters: Counters,
    pub(crate) in_flight: Arc<InFlight>,
    /// Rung when something is pending that nobody is asking for.
    pub(crate) left_pending: Notify,
}

/// Counts since the start of the process.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) alerts: AtomicU64,
    pub(crate) retractions: AtomicU64,
    pub(crate) incidents: AtomicU64,
    pub(crate) requests: AtomicU64,
    pub(crate) failed_requests: AtomicU64,
    pub(crate) dead_letters: AtomicU64,
}

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// The commands that are being asked for: none is asked for twice at a time.
#[derive(Debug, Default)]
pub(crate) struct InFlight {
    commands: Mutex<HashSet<String>>,
    left: Notify,
}

/// Holds a command's place; gives it back when dropped, whatever ended the request.
#[derive(Debug)]
pub(crate) struct Place {
    in_flight: Arc<InFlight>,
    command_id: String,
}

impl InFlight {
    /// None if the command is under way already, or too many are.
    pub(crate) fn enter(self: &Arc<Self>, command_id: &str) -> Option<Place> {
        let mut commands = self.commands.lock();
        if commands.len() >= MAX_IN_FLIGHT || !commands.insert(command_id.to_owned()) {
            return None;
        }
        Some(Place { in_flight: Arc::clone(self), command_id: command_id.to_owned() })
    }

    /// Waits until nothing is under way.
    pub(crate) async fn drained(&self) {
        loop {
            let left = self.left.notified();
            tokio::pin!(left);
            left.as_mut().enable();
            if self.commands.lock().is_empty() {
                return;
            }
            left.await;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.in_flight.commands.lock().remove(&self.command_id);
        self.in_flight.left.notify_waiters();
    }
}
