//! How much of a checkpoint what was told of keys may have: less where with more it turned out too large, and after a while more again, for what
//! made it so may be over.

/// Before it is compressed, in eighths of the largest compressed checkpoint: each is tried where with the one before it was too large.
const EIGHTHS_OF_KEYS: [usize; 4] = [32, 5, 1, 0];
/// After so many checkpoints with less, the next one may have more.
const TRIED_AGAIN_AFTER: u32 = 30;

#[derive(Debug)]
pub(crate) struct Room {
    /// Largest checkpoint, compressed.
    checkpoint_bytes: usize,
    /// Which of `EIGHTHS_OF_KEYS` holds, and since how many checkpoints.
    step: usize,
    written: u32,
}

impl Room {
    pub(crate) const fn new(checkpoint_bytes: usize) -> Self {
        Self { checkpoint_bytes, step: 0, written: 0 }
    }

    /// What the keys of all tenants may have of the next checkpoint, in bytes.
    pub(crate) const fn most_of_keys(&self) -> usize {
        (self.checkpoint_bytes / 8).saturating_mul(EIGHTHS_OF_KEYS[self.step])
    }

    /// A checkpoint was too large. False: there is nothing left to leave out.
    pub(crate) fn narrow(&mut self) -> bool {
        self.written = 0;
        let has_less = self.step + 1 < EIGHTHS_OF_KEYS.len();
        self.step += usize::from(has_less);
        has_less
    }

    /// A checkpoint was written.
    pub(crate) fn note_written(&mut self) {
        self.written = self.written.saturating_add(1);
        if self.written >= TRIED_AGAIN_AFTER {
            self.step = self.step.saturating_sub(1);
            self.written = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_left_out_because_of_something_that_is_over_is_written_again() {
        let mut room = Room::new(800);
        let all = room.most_of_keys();
        assert!(all > 800);
        // Something else than keys makes it too large, whatever is left out of them.
        assert_eq!([room.narrow(), room.narrow(), room.narrow(), room.narrow()], [true, true, true, false]);
        assert_eq!(room.most_of_keys(), 0);
        // Then it is over.
        let mut some = Vec::new();
        for _ in 0..3 * TRIED_AGAIN_AFTER {
            room.note_written();
            some.push(room.most_of_keys());
        }
        assert!(some.is_sorted());
        assert_eq!(some.last(), Some(&all));
        // It is not over, and one checkpoint in many is tried in vain.
        assert!(room.narrow());
        let less = room.most_of_keys();
        for _ in 0..TRIED_AGAIN_AFTER {
            assert_eq!(room.most_of_keys(), less);
            room.note_written();
        }
        assert_eq!(room.most_of_keys(), all);
    }
}
