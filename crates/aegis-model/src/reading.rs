//! A message read as an event once, for all in a process who read the message, or not at all, where who sealed the event hands it on beside its text. What is
//! shared is a function of the message's bytes and of when the bus stored them: nothing that a reader decides. Promises that what is shared is what a fresh
//! reading gives, that all of it together stays within a bound, and that nobody waits for anybody.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use aegis_canon::DEFAULT_MAX_BYTES;
use bytes::Bytes;

use crate::wire::Passed;
use crate::{SecurityEvent, Timestamp, Unmarked, WireError, WireEvent};

/// What is known of a text that the strict door refuses.
static NOTHING: Passed = Passed::Other { is_observation: false };

/// Bytes for the places of the parts of a sealed event, where they were not looked for yet; about, and no fewer than they turn out to be.
const OF_PLACES: usize = 2048;

/// An event as its message has it.
#[derive(Debug)]
pub struct ReadEvent {
    text: Bytes,
    /// Where the event was handed on, found by the first who wants to verify it: not all do.
    passed: OnceLock<Passed>,
    /// With the mark that most readers find: an event that claims a lane nearly always proves itself. Nobody is given it who did not find that.
    event: Arc<SecurityEvent>,
    /// The same with the other mark, made for the first who needs it.
    otherwise: OnceLock<Arc<SecurityEvent>>,
}

impl ReadEvent {
    /// Reads a message's bytes through the strict door. What is added behind the seal (`verified`, `late`) is not the sender's to say, and is not set.
    pub fn read(text: &Bytes, bus_ts: Timestamp) -> Result<Self, WireError> {
        let wire = WireEvent::read(text)?;
        let event = Arc::new(wire.event()?);
        Ok(Self::of(text, bus_ts, event, OnceLock::from(wire.into_passed())))
    }

    /// The same of a text whose event is at hand, unread. `event` must be what the text says.
    fn unread(text: &Bytes, bus_ts: Timestamp, event: Arc<SecurityEvent>) -> Self {
        Self::of(text, bus_ts, event, OnceLock::new())
    }

    fn of(text: &Bytes, bus_ts: Timestamp, mut event: Arc<SecurityEvent>, passed: OnceLock<Passed>) -> Self {
        // Nobody else has it: no copy.
        let stored = Arc::make_mut(&mut event);
        (stored.verified, stored.late, stored.bus_ts) = (stored.lane.is_some(), false, Some(bus_ts));
        Self { text: text.clone(), passed, event, otherwise: OnceLock::new() }
    }

    /// What it says, for who has still to judge it: without a copy.
    #[must_use]
    pub fn unmarked(&self) -> Unmarked<'_> {
        self.event.unmarked()
    }

    /// The event, not verified. Of one that claims a lane this is a copy, made for the first who asks.
    #[must_use]
    pub fn event(&self) -> &Arc<SecurityEvent> {
        if !self.event.verified {
            return &self.event;
        }
        loop {
            if let Some(known) = self.otherwise.get() {
                return known;
            }
            // Who was quicker has made the same.
            let _made = self.otherwise.set(Arc::new(self.marked_anew(false)));
        }
    }

    /// The event with `verified` as the caller found it to be: nobody learns by it what others found.
    #[must_use]
    pub fn marked(&self, verified: bool) -> Arc<SecurityEvent> {
        if verified == self.event.verified {
            return Arc::clone(&self.event);
        }
        // Nobody proves what is of no lane: no room is kept for it.
        if verified { Arc::new(self.marked_anew(true)) } else { Arc::clone(self.event()) }
    }

    fn marked_anew(&self, verified: bool) -> SecurityEvent {
        SecurityEvent { verified, ..SecurityEvent::clone(&self.event) }
    }

    /// The same, without a copy where nobody else has what was read.
    #[must_use]
    pub fn into_marked(self: Arc<Self>, verified: bool) -> Arc<SecurityEvent> {
        match Arc::try_unwrap(self) {
            Ok(Self { mut event, .. }) => {
                if event.verified != verified {
                    Arc::make_mut(&mut event).verified = verified;
                }
                event
            }
            Err(shared) => shared.marked(verified),
        }
    }

    /// Its text, to verify it.
    #[must_use]
    pub fn wire(&self) -> WireEvent<'_> {
        if self.passed.get().is_none() {
            // A text that is refused proves nothing. And who was quicker has found the same.
            let _known = WireEvent::read(&self.text).map(|wire| self.passed.set(wire.into_passed()));
        }
        // It is text: it was read, or written as such.
        WireEvent::again(std::str::from_utf8(&self.text).unwrap_or_default(), self.passed.get().unwrap_or(&NOTHING))
    }

    /// What it takes in memory beside the text, once somebody needed it with the other mark too; about.
    #[must_use]
    pub fn weight(&self) -> usize {
        let events = if self.event.lane.is_some() { 2 } else { 1 };
        size_of::<Self>() + self.passed.get().map_or(OF_PLACES, Passed::weight) + events * self.event.weight()
    }

    /// True if these very bytes, not just equal ones, were read, stored at that time.
    fn is_of(&self, text: &Bytes, bus_ts: Timestamp) -> bool {
        self.text.as_ptr() == text.as_ptr() && self.text.len() == text.len() && self.event.bus_ts == Some(bus_ts)
    }
}

/// How much may be kept of what was read, all messages together. What is kept counts as long as somebody has its message.
#[derive(Debug)]
pub struct ReadingRoom {
    most: usize,
    used: AtomicUsize,
}

impl ReadingRoom {
    /// Room for so many bytes.
    #[must_use]
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, used: AtomicUsize::new(0) })
    }

    /// What is kept now, bytes.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// False if there is no room for so much more within `most`.
    fn take(&self, bytes: usize, most: usize) -> bool {
        let before = self.used.fetch_add(bytes, Ordering::Relaxed);
        let has_room = before.saturating_add(bytes) <= most;
        if !has_room {
            self.give_back(bytes);
        }
        has_room
    }

    fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// What is kept of a message, and what it counts as.
#[derive(Debug)]
struct Kept {
    read: Arc<ReadEvent>,
    weight: usize,
}

/// What copies of a message share.
#[derive(Debug)]
struct Shared {
    room: Arc<ReadingRoom>,
    kept: OnceLock<Kept>,
}

impl Shared {
    fn of(&self, text: &Bytes, bus_ts: Timestamp) -> Option<Arc<ReadEvent>> {
        self.kept.get().map(|kept| &kept.read).filter(|known| known.is_of(text, bus_ts)).cloned()
    }

    /// Keeps it, if there is room within `most`. False: somebody was quicker.
    fn keep(&self, read: &Arc<ReadEvent>, most: usize) -> bool {
        let weight = read.weight();
        if !self.room.take(weight, most) {
            return true;
        }
        let is_first = self.kept.set(Kept { read: Arc::clone(read), weight }).is_ok();
        if !is_first {
            self.room.give_back(weight);
        }
        is_first
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(kept) = self.kept.get() {
            self.room.give_back(kept.weight);
        }
    }
}

#[derive(Clone, Debug, Default)]
enum Place {
    #[default]
    None,
    /// Handed on, and not counted yet.
    Unread(Arc<ReadEvent>),
    Shared(Arc<Shared>),
}

/// A place beside a message's bytes for the event that they are, filled by whoever reads it first, or has it unread. Copies of the message share it.
#[derive(Clone, Debug, Default)]
pub struct Reading(Place);

impl Reading {
    /// A place for what is read, as long as there is room. One by default keeps nothing: for a message that one reader has.
    #[must_use]
    pub fn kept_in(room: &Arc<ReadingRoom>) -> Self {
        Self(Place::Shared(Arc::new(Shared { room: Arc::clone(room), kept: OnceLock::new() })))
    }

    /// The place of a message whose event is at hand: what a reading of these bytes would give, but for when the bus stored them, which is now.
    #[must_use]
    pub fn unread(text: &Bytes, bus_ts: Timestamp, event: Arc<SecurityEvent>) -> Self {
        // Of a larger text the strict door says so.
        let is_read = text.len() <= DEFAULT_MAX_BYTES;
        Self(if is_read { Place::Unread(Arc::new(ReadEvent::unread(text, bus_ts, event))) } else { Place::None })
    }

    /// The same place in a room, with what it has, where that leaves half of the room to those who have to read.
    #[must_use]
    pub fn moved_to(self, room: &Arc<ReadingRoom>) -> Self {
        let moved = Self::kept_in(room);
        if let (Place::Unread(read), Place::Shared(shared)) = (&self.0, &moved.0) {
            shared.keep(read, room.most / 2);
        }
        moved
    }

    /// The event of the message that has these bytes and that time. Two who read it at once both do. What is no event, or has no room, is read by each.
    pub fn event(&self, text: &Bytes, bus_ts: Timestamp) -> Result<Arc<ReadEvent>, WireError> {
        let known = match &self.0 {
            Place::None => None,
            Place::Unread(read) => Some(read).filter(|known| known.is_of(text, bus_ts)).cloned(),
            Place::Shared(shared) => shared.of(text, bus_ts),
        };
        if let Some(known) = known {
            return Ok(known);
        }
        let read = Arc::new(ReadEvent::read(text, bus_ts)?);
        let Place::Shared(shared) = &self.0 else { return Ok(read) };
        if shared.kept.get().is_some() || shared.keep(&read, shared.room.most) {
            return Ok(read);
        }
        Ok(shared.of(text, bus_ts).unwrap_or(read))
    }
}

/// Says nothing of a message that its bytes do not.
impl PartialEq for Reading {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Reading {}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{EventKind, TenantId, is_observation};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    const BUS_TS: Timestamp = Timestamp::from_micros(1_700_000_000_000_000);

    /// An event as a ledger writes it, but for its hashes, which nobody checks here.
    fn sealed(text: &str, seq: i64) -> Vec<u8> {
        let ts = Timestamp::from_micros(5);
        let mut event = SecurityEvent::new(TenantId::new("acme").unwrap(), "e", "edge", EventKind::ToolOutcome, ts);
        (event.lane, event.seq) = (Some("acme.e.1".to_owned()), Some(seq));
        event.reason = Some(text.to_owned());
        event.matched_policies = vec![text.to_owned()];
        let mut columns = serde_json::to_value(&event).unwrap();
        columns.as_object_mut().unwrap().retain(|key, _| key != "verified");
        let columns = String::from_utf8(aegis_canon::canonicalize_value(&columns).unwrap()).unwrap();
        let body = json!({"a": text, "b": {"c": seq}});
        let body = String::from_utf8(aegis_canon::canonicalize_value(&body).unwrap()).unwrap();
        let proof = r#"{"key_id":"k","size":1,"index":0,"path":[],"signature":"s"}"#;
        let open = |object: &str| object.strip_suffix('}').unwrap().to_owned();
        let whole = format!(
            r#"{},"receipt_hash":"00","receipt":{},"receipt_hash":"00"}},"proof":{proof}}}"#,
            open(&columns),
            open(&body)
        );
        whole.into_bytes()
    }

    /// Sealed events, other ones, and both with bytes changed, left out and put in; and any bytes.
    fn messages() -> impl Strategy<Value = Vec<u8>> {
        let text = prop_oneof![any::<String>(), "[a-z\"\\\\é]{0,40}", "x{0,3000}"];
        let sealed = (text.clone(), any::<i32>()).prop_map(|(text, seq)| sealed(&text, i64::from(seq)));
        let observed = (text, any::<bool>()).prop_map(|(text, late)| {
            let ts = Timestamp::from_micros(7);
            let mut event = SecurityEvent::new(TenantId::new("acme").unwrap(), "i", "i", EventKind::ExternalOtlp, ts);
            event.attributes = Some(text);
            (event.verified, event.late) = (late, late);
            serde_json::to_vec(&event).unwrap()
        });
        let whole = prop_oneof![3 => sealed, 2 => observed];
        let piece = prop_oneof![
            prop::collection::vec(any::<u8>(), 0..3),
            prop::sample::select(vec![",", "\"", "}", "{", " ", "null", "\"seq\":1,", "\\u0041", "\u{e9}"])
                .prop_map(|piece| piece.as_bytes().to_vec()),
        ];
        let changed = (whole.clone(), any::<prop::sample::Index>(), 0usize..3, piece).prop_map(|(bytes, at, removed, piece)| {
            let at = at.index(bytes.len());
            [&bytes[..at], piece.as_slice(), &bytes[(at + removed).min(bytes.len())..]].concat()
        });
        prop_oneof![2 => whole, 4 => changed, 1 => prop::collection::vec(any::<u8>(), 0..200)]
    }

    /// All that can be asked of a text that was read.
    fn said(wire: &WireEvent<'_>) -> (Result<SecurityEvent, WireError>, Result<Value, WireError>, String, bool) {
        (wire.event(), wire.to_value(), format!("{:?}", wire.sealed_parts()), wire.is_observation())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1024))]

        /// L-READ-ONCE: whoever reads after others has what a fresh reading gives, or its refusal, and nothing of what they found.
        #[test]
        fn what_is_shared_is_what_a_fresh_reading_gives(bytes in messages(), found in prop::collection::vec(any::<bool>(), 1..5)) {
            let text = Bytes::from(bytes.clone());
            let fresh = WireEvent::read(&bytes).and_then(|wire| {
                let event = SecurityEvent { bus_ts: Some(BUS_TS), verified: false, late: false, ..wire.event()? };
                Ok((event, wire))
            });
            let rooms = [usize::MAX, 2000, usize::MAX, 2000].map(ReadingRoom::new);
            let handed_on = |room: &Arc<ReadingRoom>| match &fresh {
                Ok((event, _)) => {
                    // What is added behind the seal is not the sealer's to say.
                    let sealed = SecurityEvent { verified: true, late: true, bus_ts: None, ..event.clone() };
                    Reading::unread(&text, BUS_TS, Arc::new(sealed)).moved_to(room)
                }
                Err(_) => Reading::kept_in(room),
            };
            let [one, other] = [&rooms[0], &rooms[1]].map(Reading::kept_in);
            let readings = [one, other, handed_on(&rooms[2]), handed_on(&rooms[3])];
            prop_assert_eq!(rooms[2].used() > 0, fresh.is_ok());
            if let Ok((_, wire)) = &fresh {
                prop_assert_eq!(wire.is_observation(), wire.to_value().is_ok_and(|value| is_observation(&value)));
            }
            for (verified, reading) in found.iter().flat_map(|verified| readings.each_ref().map(|reading| (*verified, reading))) {
                // Each reader has a copy of the message.
                let read = reading.clone().event(&text.clone(), BUS_TS);
                match (&fresh, read) {
                    (Ok((event, wire)), Ok(read)) => {
                        prop_assert_eq!(&**read.event(), event);
                        let (seen, known) = (read.unmarked(), event.unmarked());
                        prop_assert_eq!((seen.event_id(), seen.lane(), seen.bus_ts()), (known.event_id(), known.lane(), Some(BUS_TS)));
                        prop_assert_eq!(said(&read.wire()), said(wire));
                        prop_assert_eq!(read.wire().text().as_bytes(), &bytes[..]);
                        let marked = SecurityEvent { verified, ..event.clone() };
                        prop_assert_eq!(SecurityEvent::clone(&read.marked(verified)), marked.clone());
                        prop_assert_eq!(SecurityEvent::clone(&Arc::clone(&read).into_marked(verified)), marked.clone());
                        let alone = Reading::default().event(&text, BUS_TS).unwrap();
                        prop_assert_eq!(SecurityEvent::clone(&alone.into_marked(verified)), marked);
                        prop_assert_eq!(&**read.event(), event);
                    }
                    (Err(error), Err(refused)) => prop_assert_eq!(error, &refused),
                    (fresh, read) => {
                        let said = format!("a fresh reading {:?}, a shared one {:?}", fresh.is_ok(), read.map(|_| ()));
                        return Err(TestCaseError::fail(said));
                    }
                }
            }
            prop_assert!(rooms[1].used() <= 2000 && rooms[3].used() <= 2000);
            prop_assert_eq!(rooms[0].used() > 0, fresh.is_ok());
            drop(readings);
            prop_assert_eq!(rooms.map(|room| room.used()), [0, 0, 0, 0]);
        }
    }

    #[test]
    fn an_event_is_read_once_and_marked_once() {
        let room = ReadingRoom::new(10_000);
        let (text, reading) = (Bytes::from(sealed("x", 1)), Reading::kept_in(&room));
        let (one, other) = (reading.event(&text, BUS_TS).unwrap(), reading.clone().event(&text.clone(), BUS_TS).unwrap());
        assert!(Arc::ptr_eq(&one, &other));
        assert!(Arc::ptr_eq(&one.marked(true), &other.marked(true)));
        assert!(Arc::ptr_eq(&one.marked(false), other.event()));
        assert!(one.marked(true).verified && !one.marked(false).verified);
        assert!(one.wire().sealed_parts().is_some());
        assert_eq!(room.used(), one.weight());

        let alone = Reading::default();
        assert!(!Arc::ptr_eq(&alone.event(&text, BUS_TS).unwrap(), &alone.event(&text, BUS_TS).unwrap()));
    }

    #[test]
    fn an_event_that_is_handed_on_is_not_read_and_leaves_half_of_the_room() {
        let text = Bytes::from(sealed("x", 1));
        let read = ReadEvent::read(&text, BUS_TS).unwrap();
        // Not what the text says, to see that nobody reads it.
        let told = || Arc::new(SecurityEvent { reason: Some("unread".to_owned()), ..SecurityEvent::clone(read.event()) });
        let handed = |most: usize| {
            let room = ReadingRoom::new(most);
            let reading = Reading::unread(&text, BUS_TS, told()).moved_to(&room);
            (room, reading)
        };
        let reason = |reading: &Reading, text: &Bytes, bus_ts: Timestamp| {
            reading.event(text, bus_ts).unwrap().event().reason.clone().unwrap()
        };
        let (room, reading) = handed(1_000_000);
        let one = reading.event(&text, BUS_TS).unwrap();
        assert_eq!(one.event().reason.as_deref(), Some("unread"));
        assert!(one.wire().sealed_parts().is_some());
        assert!(Arc::ptr_eq(&one.marked(true), &reading.clone().event(&text, BUS_TS).unwrap().marked(true)));
        // Of other memory, and of another time, it is not.
        assert_eq!(reason(&reading, &Bytes::from(text.to_vec()), BUS_TS), "x");
        assert_eq!(reason(&reading, &text, BUS_TS.plus_seconds(1)), "x");

        let weight = room.used();
        let (tight, crowded) = handed(2 * weight - 1);
        assert_eq!((tight.used(), reason(&crowded, &text, BUS_TS).as_str()), (0, "x"));
        let (_, wide) = handed(2 * weight);
        assert_eq!(reason(&wide, &text, BUS_TS), "unread");

        // What no reader would take is not taken either, or proves nothing.
        let large = Bytes::from(vec![b' '; DEFAULT_MAX_BYTES + 1]);
        assert!(Reading::unread(&large, BUS_TS, told()).event(&large, BUS_TS).is_err());
        let torn = text.slice(..text.len() - 1);
        let torn = Reading::unread(&torn, BUS_TS, told()).event(&torn, BUS_TS).unwrap();
        let wire = torn.wire();
        assert!(wire.sealed_parts().is_none() && wire.to_value().is_err() && !wire.is_observation());
    }

    #[test]
    fn a_place_gives_nothing_for_other_bytes_or_another_time() {
        let (text, reading) = (Bytes::from(sealed("x", 1)), Reading::kept_in(&ReadingRoom::new(10_000)));
        reading.event(&text, BUS_TS).unwrap();
        let other = Bytes::from(sealed("y", 1));
        assert_eq!(reading.event(&other, BUS_TS).unwrap().event().reason.as_deref(), Some("y"));
        let equal = Bytes::from(text.to_vec());
        assert!(!Arc::ptr_eq(&reading.event(&equal, BUS_TS).unwrap(), &reading.event(&text, BUS_TS).unwrap()));
        let later = BUS_TS.plus_seconds(1);
        assert_eq!(reading.event(&text, later).unwrap().event().bus_ts, Some(later));
        assert!(reading.event(&text.slice(..text.len() - 1), BUS_TS).is_err(), "the beginning of a text is another text");
        assert_eq!(reading.event(&text, BUS_TS).unwrap().event().reason.as_deref(), Some("x"));
    }

    #[test]
    fn what_has_no_room_is_read_by_each_until_there_is_some() {
        let texts: Vec<Bytes> = (1..=3).map(|seq| Bytes::from(sealed("x", seq))).collect();
        let weight = ReadEvent::read(&texts[0], BUS_TS).unwrap().weight();
        let room = ReadingRoom::new(2 * weight);
        let mut readings: Vec<Reading> = texts.iter().map(|_| Reading::kept_in(&room)).collect();
        let is_shared = |place: usize, readings: &[Reading]| {
            let read = || readings[place].event(&texts[place], BUS_TS).unwrap();
            Arc::ptr_eq(&read(), &read())
        };
        assert_eq!([0, 1, 2].map(|place| is_shared(place, &readings)), [true, true, false]);
        assert_eq!(room.used(), 2 * weight);
        // Whoever still has a message has what was read of it.
        let copy = readings[0].clone();
        readings[0] = Reading::default();
        assert_eq!((room.used(), is_shared(2, &readings)), (2 * weight, false));
        drop(copy);
        assert_eq!((room.used(), is_shared(2, &readings)), (weight, true));
        drop(readings);
        assert_eq!(room.used(), 0);
    }

    #[test]
    fn those_who_read_at_once_keep_one_and_count_one() {
        let (text, room) = (Bytes::from(sealed("x", 1)), ReadingRoom::new(1_000_000));
        for _ in 0..200 {
            let reading = Reading::kept_in(&room);
            let read = || reading.event(&text, BUS_TS).unwrap();
            let all: Vec<Arc<ReadEvent>> = std::thread::scope(|scope| {
                let readers: Vec<_> = (0..3).map(|_| scope.spawn(read)).collect();
                readers.into_iter().map(|reader| reader.join().unwrap()).collect()
            });
            assert!(all.iter().all(|one| one.event() == all[0].event()));
            assert_eq!(room.used(), all[0].weight());
        }
        assert_eq!(room.used(), 0);
    }
}
