//! Shipping again what was acknowledged once and is missing behind the bus. Consumers drop what they have.

use aegis_bus::AskForMissing;
use tokio::sync::mpsc;

/// Requests that wait at most; whoever misses something asks again.
const MOST_REQUESTS: usize = 64;

/// A stretch of a lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stretch {
    pub(crate) lane: String,
    pub(crate) from_seq: i64,
    pub(crate) to_seq: i64,
}

/// Asks a shipper to ship receipts again. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ShipAgain(mpsc::Sender<Stretch>);

pub(crate) fn channel() -> (ShipAgain, mpsc::Receiver<Stretch>) {
    let (sender, receiver) = mpsc::channel(MOST_REQUESTS);
    (ShipAgain(sender), receiver)
}

impl AskForMissing for ShipAgain {
    fn ask(&self, lane: &str, from_seq: i64, to_seq: i64) {
        let _asked_again_if_full = self.0.try_send(Stretch { lane: lane.to_owned(), from_seq, to_seq });
    }
}
