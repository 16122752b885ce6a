//! When two names are one person: votes, edits and the sides of an approval all go by this one comparison.

/// True if both name the same person: letters count whatever their case, white space only as a separator, and what nobody sees not at all.
#[must_use]
pub fn same_person(one: &str, other: &str) -> bool {
    folded(one) == folded(other)
}

/// Whether a name shows something that others can tell from nothing.
pub(crate) fn names_somebody(name: &str) -> bool {
    name.chars().any(char::is_alphanumeric)
}

/// Upper case first: letters with several lower-case forms (ß and ss, ς and σ) then end up as one.
fn folded(name: &str) -> String {
    let seen: String = name.chars().filter(|c| !is_invisible(*c)).collect();
    let words: Vec<String> = seen.split_whitespace().map(|word| word.to_uppercase().to_lowercase()).collect();
    words.join(" ")
}

/// Characters without a width or a shape: soft hyphen, joiners, marks of direction, variation selectors, byte order mark, tags.
fn is_invisible(c: char) -> bool {
    matches!(
        c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{e0000}'..='\u{e0fff}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_is_the_same_however_the_name_is_written() {
        for (one, other) in [
            ("ada", "Ada"),
            ("ÅSA  Öst", " åsa öst "),
            ("Groß", "GROSS"),
            ("ΝΊΚΟΣ", "νίκος"),
            ("a\u{200b}d\u{ad}a\u{feff}", "ada"),
        ] {
            assert!(same_person(one, other) && same_person(other, one), "{one} {other}");
        }
        for (one, other) in [("ada", "adam"), ("a da", "ada"), ("ada", "")] {
            assert!(!same_person(one, other), "{one} {other}");
        }
        assert!(names_somebody("ada") && names_somebody("Ö") && names_somebody(" 7"));
        assert!(!names_somebody("") && !names_somebody(" -_ ") && !names_somebody("\u{200b}\u{e0061}"));
    }
}
