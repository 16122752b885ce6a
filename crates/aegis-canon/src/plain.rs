//! What stands in a JSON string as it is. Everything that reads or writes strings here looks for the end of such a run, many
//! bytes at a time, because most strings are nothing else.

use std::num::NonZeroU64;

/// Bytes looked at together: a vector register of any processor, and shorter than most identifiers.
const STEP: usize = 16;

/// And where less than that is left, which is the end of most strings.
const WORD: usize = 8;

/// A one in each byte of a word, and the high bit of each.
const ONES: u64 = u64::MAX / 0xff;
const HIGH: u64 = ONES << 7;

/// True for a byte that ends a plain run: a quote, a backslash or a control character.
const fn ends_run(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

/// How many bytes at the beginning of `bytes` need no escape and end no string.
pub(crate) fn plain_run(bytes: &[u8]) -> usize {
    let (steps, _) = bytes.as_chunks::<STEP>();
    // Without a way out of the inner loop the compiler makes it a handful of vector instructions.
    let mut run = steps.iter().take_while(|step| !step.iter().fold(false, |ends, &byte| ends | ends_run(byte))).count() * STEP;
    while let Some(word) = bytes[run..].first_chunk::<WORD>() {
        match first(ends_of(u64::from_le_bytes(*word))) {
            Some(place) => return run + place,
            None => run += WORD,
        }
    }
    match bytes.last_chunk::<WORD>() {
        // What of it was looked at before is plain.
        Some(word) => first(ends_of(u64::from_le_bytes(*word))).map_or(bytes.len(), |place| bytes.len() - WORD + place),
        None => bytes.iter().take_while(|&&byte| !ends_run(byte)).count(),
    }
}

/// True for a byte that may stand in a plain key: ASCII that can be seen and needs no escape.
const fn is_of_key(byte: u8) -> bool {
    matches!(byte, 0x20..=0x7e) && !ends_run(byte)
}

/// How many bytes at the beginning of `bytes` may stand in a plain key. Few: keys are shorter than most strings, and behind one the text goes on.
pub(crate) fn key_run(bytes: &[u8]) -> usize {
    let mut run = 0;
    while let Some(word) = bytes[run..].first_chunk::<WORD>() {
        let word = u64::from_le_bytes(*word);
        match first(ends_of(word) | equal_to(word, 0x7f) | (word & HIGH)) {
            Some(place) => return run + place,
            None => run += WORD,
        }
    }
    run + bytes[run..].iter().take_while(|&&byte| is_of_key(byte)).count()
}

/// Whether a backslash is among `bytes`.
pub(crate) fn has_backslash(bytes: &[u8]) -> bool {
    let (words, _) = bytes.as_chunks::<WORD>();
    let noted = |word: &[u8; WORD]| equal_to(u64::from_le_bytes(*word), b'\\');
    match bytes.last_chunk::<WORD>() {
        Some(last) => words.iter().fold(noted(last), |found, word| found | noted(word)) != 0,
        None => bytes.contains(&b'\\'),
    }
}

/// Bytes of a word that are below `n`, by their high bits. All eight are looked at together: to take `n` of a byte below it borrows from its high
/// bit, which is noted where it was not set before. A borrow goes on to the bytes behind and may have them noted too, never one before: the
/// first is right.
fn below(word: u64, n: u64) -> u64 {
    word.wrapping_sub(ONES * n) & !word & HIGH
}

/// Those that are `byte`; of these too the first is right.
fn equal_to(word: u64, byte: u8) -> u64 {
    below(word ^ (ONES * u64::from(byte)), 1)
}

/// Those that end a run.
fn ends_of(word: u64) -> u64 {
    below(word, 0x20) | equal_to(word, b'"') | equal_to(word, b'\\')
}

/// The place of the first that is noted.
fn first(noted: u64) -> Option<usize> {
    NonZeroU64::new(noted).map(|noted| (noted.trailing_zeros() / u8::BITS) as usize)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What ends a run, what is next to that, and the same with the high bit.
    const NEAR: [u8; 18] =
        [0, 1, 0x1f, 0x20, 0x21, b'"', 0x23, 0x5b, b'\\', 0x5d, 0x7e, 0x7f, 0x80, 0x9f, 0xa0, 0xa2, 0xdc, 0xff];

    proptest! {
        #[test]
        fn a_run_ends_at_the_first_of_many(
            near in prop::collection::vec(prop::sample::select(NEAR.to_vec()), 0..40),
            far in prop::collection::vec(any::<u8>(), 0..40),
            plain in 0..40usize,
        ) {
            for rest in [near, far] {
                let bytes = [vec![b'a'; plain], rest].concat();
                prop_assert_eq!(plain_run(&bytes), bytes.iter().take_while(|&&byte| !ends_run(byte)).count());
                prop_assert_eq!(key_run(&bytes), bytes.iter().take_while(|&&byte| is_of_key(byte)).count());
                prop_assert_eq!(has_backslash(&bytes), bytes.contains(&b'\\'));
            }
        }
    }

    #[test]
    fn a_run_ends_at_the_first_byte_that_may_not_stand_plain_wherever_it_is() {
        for length in 0..=3 * STEP {
            let plain: Vec<u8> = (0..length).map(|i| b"az09 ~\x7f\xc3\xa9!#[]"[i % 13]).collect();
            assert_eq!(plain_run(&plain), length);
            for place in 0..length {
                for end in 0..=u8::MAX {
                    let mut bytes = plain.clone();
                    bytes[place] = end;
                    let expected = if ends_run(end) { place } else { length };
                    assert_eq!(plain_run(&bytes), expected, "byte {end} at {place} of {length}");
                }
            }
        }
    }
}
