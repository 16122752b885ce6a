//! Records of rules that are refused: each tenant whom one could have changed something for is told, by an event that control seals. Promises that no tick waits
//! for it, that a flood is told once for each partition, fault and hour of the bus's time, and that what could not be told is told by a later start.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use aegis_keys::KeyError;
use aegis_model::{PARTITIONS, TenantId, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::time::Instant;

use crate::follow::Running;

/// The same is told again after this much time of the bus, microseconds.
const HOUR: i64 = 3_600_000_000;
/// How long it is left alone where control does not take it.
const RETRY: Duration = Duration::from_secs(2);

/// What is wrong with a record of rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecordFault {
    BadSignature,
    UnknownKey,
    /// No record at all.
    Malformed,
    Unsigned,
    /// It belongs under another subject.
    Misplaced,
    /// Signed, and its text is not what its hash says.
    Altered,
    /// Signed, and a newer one was taken.
    Older,
}

impl RecordFault {
    /// The word in the event.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BadSignature => "bad_signature",
            Self::UnknownKey => "unknown_key",
            Self::Malformed => "malformed",
            Self::Unsigned => "unsigned",
            Self::Misplaced => "misplaced",
            Self::Altered => "altered",
            Self::Older => "older",
        }
    }
}

/// Why a record is refused: for the event a word, for this process's log the rest.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) fault: RecordFault,
    pub(crate) message: String,
    /// Of whom it is, where control signed that.
    pub(crate) tenant: Option<TenantId>,
}

impl Refusal {
    pub(crate) fn new(fault: RecordFault, message: impl Into<String>) -> Self {
        Self { fault, message: message.into(), tenant: None }
    }

    /// Control has said something newer since.
    pub(crate) fn older(tenant: Option<TenantId>, offered: i64, held: i64) -> Self {
        let message = format!("its revision is {offered}, and control has signed {held} since: somebody put it there again");
        Self { fault: RecordFault::Older, message, tenant }
    }
}

impl From<KeyError> for Refusal {
    fn from(error: KeyError) -> Self {
        let fault = match error {
            KeyError::UnknownKey(_) => RecordFault::UnknownKey,
            KeyError::BadSignature => RecordFault::BadSignature,
            _ => RecordFault::Malformed,
        };
        Self::new(fault, error.to_string())
    }
}

/// A record that was refused, as its tenants are told. Nothing of it is what its writer wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedRecord {
    pub partition: u32,
    /// Of whom it is; None: it could have been anybody's in the partition, or everybody's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant_id: Option<TenantId>,
    pub fault: RecordFault,
    /// Where it stands in the stream ASE, and since when.
    pub seq: u64,
    pub bus_ts: Timestamp,
}

/// Whom the same is told once an hour.
type Place = (u32, Option<TenantId>, RecordFault);

impl RefusedRecord {
    /// None where it stands in no partition, and so concerns nobody.
    pub(crate) fn of(subject: &str, seq: u64, bus_ts: Timestamp, refusal: &Refusal) -> Option<Self> {
        let partition = subject.strip_prefix("ruleset.")?.parse::<u32>().ok().filter(|partition| *partition < PARTITIONS)?;
        Some(Self { partition, tenant_id: refusal.tenant.clone(), fault: refusal.fault, seq, bus_ts })
    }

    /// The hour of the bus's time in which it is told once.
    #[must_use]
    pub const fn hour(&self) -> i64 {
        self.bus_ts.as_micros().div_euclid(HOUR)
    }

    fn place(&self) -> Place {
        (self.partition, self.tenant_id.clone(), self.fault)
    }
}

/// Who tells tenants of a refused record: detection seals nothing.
pub trait RefusedRecords: Send + Sync + fmt::Debug {
    /// Has control seal it for each tenant concerned, once for the record's place and hour however often it is asked. Never waits: whoever answers does so when
    /// it is sealed; one who goes without an answer is asked again.
    fn tell(&self, refused: &RefusedRecord) -> oneshot::Receiver<()>;
}

/// What is told, and what is to be. As large as there are partitions and tenants, times faults.
#[derive(Debug, Default)]
pub(crate) struct Distrust {
    teller: Option<Arc<dyn RefusedRecords>>,
    /// In which hour it was told last, or is to be.
    noted: BTreeMap<Place, i64>,
    waiting: BTreeMap<Place, RefusedRecord>,
    asked: Option<(RefusedRecord, oneshot::Receiver<()>)>,
    /// Who was asked for last: those behind it come next, so that one that is never told keeps no other waiting.
    last: Option<Place>,
    rests_until: Option<Instant>,
}

impl Distrust {
    pub(crate) fn new(teller: Option<Arc<dyn RefusedRecords>>) -> Self {
        Self { teller, ..Self::default() }
    }

    /// A record was refused. Another hour, and not a later one: a clock of the bus that was ahead once must not silence what comes behind it.
    pub(crate) fn note(&mut self, refused: RefusedRecord) {
        if self.teller.is_some() && self.noted.insert(refused.place(), refused.hour()) != Some(refused.hour()) {
            self.waiting.insert(refused.place(), refused);
        }
    }

    /// What a checkpoint has: an earlier life could not tell it.
    pub(crate) fn know_again(&mut self, untold: Vec<RefusedRecord>) {
        untold.into_iter().for_each(|refused| self.note(refused));
    }

    /// For a checkpoint.
    pub(crate) fn untold(&self) -> Vec<RefusedRecord> {
        let asked = self.asked.iter().map(|(refused, _)| refused);
        asked.chain(self.waiting.values()).cloned().collect()
    }

    /// One step on: looks at what was asked, and asks for the next. Waits for nobody.
    pub(crate) fn step(&mut self) {
        let Some(teller) = self.teller.clone() else { return };
        if let Some((refused, mut answer)) = self.asked.take() {
            match answer.try_recv() {
                Ok(()) => {}
                Err(TryRecvError::Empty) => {
                    self.asked = Some((refused, answer));
                    return;
                }
                Err(TryRecvError::Closed) => {
                    let partition = refused.partition;
                    tracing::warn!(partition, "tenants cannot be told now that a record of rules is refused; it is tried again");
                    self.rests_until = Some(Instant::now() + RETRY);
                    self.waiting.entry(refused.place()).or_insert(refused);
                }
            }
        }
        if self.rests_until.is_some_and(|until| Instant::now() < until) {
            return;
        }
        if let Some(refused) = self.take_next() {
            let answer = teller.tell(&refused);
            self.asked = Some((refused, answer));
        }
    }

    fn take_next(&mut self) -> Option<RefusedRecord> {
        let behind = self.last.take().map_or(Bound::Unbounded, Bound::Excluded);
        let next = self.waiting.range((behind, Bound::Unbounded)).next().or_else(|| self.waiting.first_key_value());
        let place = next.map(|(place, _)| place.clone())?;
        self.last = Some(place.clone());
        self.waiting.remove(&place)
    }
}

impl Running {
    /// True of a message of the stream that what is known of rules is of, or that came to another one since it is read.
    pub(crate) const fn is_read_first(&self, seq: u64) -> bool {
        seq > self.other_to
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use parking_lot::Mutex;

    /// Takes note of what it is asked, and answers as it is told to.
    #[derive(Debug, Default)]
    struct Teller {
        asked: Mutex<Vec<RefusedRecord>>,
        is_deaf: Mutex<bool>,
    }

    impl RefusedRecords for Teller {
        fn tell(&self, refused: &RefusedRecord) -> oneshot::Receiver<()> {
            let (told, answer) = oneshot::channel();
            self.asked.lock().push(refused.clone());
            if !*self.is_deaf.lock() {
                told.send(()).unwrap();
            }
            answer
        }
    }

    fn refused(subject: &str, second: i64, fault: RecordFault) -> RefusedRecord {
        let bus_ts = Timestamp::from_micros(second * 1_000_000);
        RefusedRecord::of(subject, second.unsigned_abs(), bus_ts, &Refusal::new(fault, "m")).unwrap()
    }

    fn steps(distrust: &mut Distrust, count: usize) {
        (0..count).for_each(|_| distrust.step());
    }

    #[tokio::test]
    async fn a_flood_is_told_once_for_each_partition_fault_and_hour() {
        let teller = Arc::new(Teller::default());
        let mut distrust = Distrust::new(Some(teller.clone()));
        for second in 0..1000 {
            distrust.note(refused("ruleset.07", second, RecordFault::Unsigned));
            distrust.note(refused("ruleset.07", second, RecordFault::BadSignature));
            distrust.note(refused("ruleset.63", second, RecordFault::Unsigned));
        }
        distrust.note(refused("ruleset.63", 3600, RecordFault::Unsigned));
        steps(&mut distrust, 10);
        let told: Vec<(u32, RecordFault, i64)> =
            teller.asked.lock().iter().map(|refused| (refused.partition, refused.fault, refused.hour())).collect();
        // Of what waits in one place the newest is told.
        let (bad, unsigned) = (RecordFault::BadSignature, RecordFault::Unsigned);
        assert_eq!(told, [(7, bad, 0), (7, unsigned, 0), (63, unsigned, 1)]);
        assert!(distrust.untold().is_empty());
        distrust.note(refused("ruleset.63", 100, RecordFault::Unsigned));
        steps(&mut distrust, 2);
        assert_eq!(teller.asked.lock().len(), 4, "a clock that was ahead silences nothing");
    }

    #[tokio::test]
    async fn what_control_does_not_take_is_told_later_and_also_by_a_later_life() {
        let teller = Arc::new(Teller::default());
        *teller.is_deaf.lock() = true;
        let mut distrust = Distrust::new(Some(teller.clone()));
        let one = refused("ruleset.00", 5, RecordFault::Malformed);
        distrust.note(one.clone());
        assert_eq!(distrust.untold(), std::slice::from_ref(&one));
        steps(&mut distrust, 5);
        assert_eq!((teller.asked.lock().len(), distrust.untold()), (1, vec![one.clone()]), "it is left alone for a while");
        let saved = serde_json::to_string(&distrust.untold()).unwrap();
        *teller.is_deaf.lock() = false;
        let mut later = Distrust::new(Some(teller.clone()));
        later.know_again(serde_json::from_str(&saved).unwrap());
        for distrust in [&mut distrust, &mut later] {
            // So much later.
            distrust.rests_until = None;
            steps(distrust, 2);
            assert!(distrust.untold().is_empty());
        }
        assert_eq!(*teller.asked.lock(), [one.clone(), one.clone(), one]);
    }

    #[tokio::test]
    async fn one_that_control_never_takes_keeps_no_other_waiting() {
        /// Takes those of one partition alone.
        #[derive(Debug, Default)]
        struct Picky(Mutex<Vec<u32>>);

        impl RefusedRecords for Picky {
            fn tell(&self, refused: &RefusedRecord) -> oneshot::Receiver<()> {
                let (told, answer) = oneshot::channel();
                if refused.partition == 9 {
                    self.0.lock().push(refused.partition);
                    told.send(()).unwrap();
                }
                answer
            }
        }

        let teller = Arc::new(Picky::default());
        let mut distrust = Distrust::new(Some(teller.clone()));
        for subject in ["ruleset.00", "ruleset.01", "ruleset.09"] {
            distrust.note(refused(subject, 5, RecordFault::Unsigned));
        }
        for _ in 0..10 {
            distrust.step();
            // So much later.
            distrust.rests_until = None;
        }
        assert_eq!((teller.0.lock().len(), distrust.untold().len()), (1, 2));
    }

    #[test]
    fn what_stands_in_no_partition_concerns_nobody_and_without_a_teller_nothing_is_kept() {
        let refusal = Refusal::new(RecordFault::Malformed, "m");
        for subject in ["ruleset.64", "ruleset.", "ruleset.-1", "ruleset.a.b", "ase.00.acme.x"] {
            assert_eq!(RefusedRecord::of(subject, 1, Timestamp::from_micros(0), &refusal), None, "{subject}");
        }
        let mut distrust = Distrust::new(None);
        distrust.note(refused("ruleset.00", 5, RecordFault::Malformed));
        distrust.step();
        assert!(distrust.untold().is_empty());
    }
}
