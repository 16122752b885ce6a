//! When two names are one person: votes, edits and the sides of an approval all go by this one comparison.

/// True if both name the same person: letters count whatever their case, and white space only as a separator.
#[must_use]
pub fn same_person(one: &str, other: &str) -> bool {
    folded(one) == folded(other)
}

/// Upper case first: letters with several lower-case forms (ß and ss, ς and σ) then end up as one.
fn folded(name: &str) -> String {
    let words: Vec<String> = name.split_whitespace().map(|word| word.to_uppercase().to_lowercase()).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_is_the_same_however_the_name_is_written() {
        for (one, other) in [("ada", "Ada"), ("ÅSA  Öst", " åsa öst "), ("Groß", "GROSS"), ("ΝΊΚΟΣ", "νίκος")] {
            assert!(same_person(one, other) && same_person(other, one), "{one} {other}");
        }
        for (one, other) in [("ada", "adam"), ("a da", "ada"), ("ada", "")] {
            assert!(!same_person(one, other), "{one} {other}");
        }
    }
}
