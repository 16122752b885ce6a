//! What stands in a JSON string as it is. Everything that reads or writes strings here looks for the end of such a run, many
//! bytes at a time, because most strings are nothing else.

/// Bytes looked at together: a vector register of any processor, and shorter than most identifiers.
const STEP: usize = 16;

/// True for a byte that ends a plain run: a quote, a backslash or a control character.
const fn ends_run(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

/// How many bytes at the beginning of `bytes` need no escape and end no string.
pub(crate) fn plain_run(bytes: &[u8]) -> usize {
    let (steps, _) = bytes.as_chunks::<STEP>();
    // Without a way out of the inner loop the compiler makes it a handful of vector instructions.
    let whole = steps.iter().take_while(|step| !step.iter().fold(false, |ends, &byte| ends | ends_run(byte))).count() * STEP;
    whole + bytes[whole..].iter().take_while(|&&byte| !ends_run(byte)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

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
