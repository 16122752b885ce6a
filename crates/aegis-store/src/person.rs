//! When two names are one person: votes, edits and the sides of an approval all go by this one comparison.
//! Promises that a name which people could take for another's counts as that one's. Two people whose names look the same count as one: they decide
//! less together than they could, never more.

use unicode_normalization::UnicodeNormalization;
use unicode_security::skeleton;

/// True if both name the same person: letters count whatever their case and Unicode form, white space only as a separator, what nobody sees not
/// at all, and characters that look alike (UTS 39, confusable detection) as one.
#[must_use]
pub fn same_person(one: &str, other: &str) -> bool {
    // What looks alike in capitals need not do so in small letters, nor the other way round: I and l, В (Ve) and B.
    one == other
        || folded(one) == folded(other)
        || drawn(&folded(one)) == drawn(&folded(other))
        || folded(&drawn(one)) == folded(&drawn(other))
}

/// Whether a name shows something that others can tell from nothing.
pub(crate) fn names_somebody(name: &str) -> bool {
    seen(name).any(char::is_alphanumeric)
}

/// Upper case first: letters with several lower-case forms (ß and ss, ς and σ) then end up as one. An i or j keeps its dot under another one.
fn folded(name: &str) -> String {
    let plain: String = seen(name).nfkc().collect();
    let words = plain.split(separates).filter(|word| !word.is_empty());
    let small: Vec<String> = words.map(|word| word.to_uppercase().to_lowercase()).collect();
    let again: String = small.join(" ").nfkc().collect();
    again.replace("i\u{307}", "i").replace("j\u{307}", "j")
}

/// What a name looks like: the same for all that look alike.
fn drawn(name: &str) -> String {
    let plain: String = seen(name).nfkc().collect();
    skeleton(&plain).collect()
}

fn seen(name: &str) -> impl Iterator<Item = char> + '_ {
    name.chars().filter(|c| !is_invisible(*c))
}

/// White space, and the one character that is drawn as nothing and is none.
fn separates(c: char) -> bool {
    c.is_whitespace() || c == '\u{2800}'
}

/// Characters without a width or a shape: soft hyphen, joiners, fillers, marks of direction, variation selectors, byte order mark, tags, controls.
fn is_invisible(c: char) -> bool {
    (c.is_control() && !c.is_whitespace())
        || matches!(
            c,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}'
                | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}'
                | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
                | '\u{e0000}'..='\u{e0fff}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_one(one: &str, other: &str) {
        assert!(same_person(one, other) && same_person(other, one), "{one} {other}");
    }

    #[test]
    fn a_person_is_the_same_however_the_name_is_written() {
        for (one, other) in [
            ("ada", "Ada"),
            ("ÅSA  Öst", " åsa öst "),
            ("Groß", "GROSS"),
            ("ΝΊΚΟΣ", "νίκος"),
            ("a\u{200b}d\u{ad}a\u{feff}", "ada"),
            ("a\u{3164}d\u{1160}a\u{7}", "ada"),
            ("ada\u{2800}lovelace", "Ada Lovelace"),
        ] {
            is_one(one, other);
        }
        for (one, other) in
            [("ada", "adam"), ("a da", "ada"), ("ada", ""), ("ada", "äda"), ("person-2", "person-3"), ("Анна", "Инна")]
        {
            assert!(!same_person(one, other), "{one} {other}");
        }
        assert!(names_somebody("ada") && names_somebody("Ö") && names_somebody(" 7"));
        assert!(!names_somebody("") && !names_somebody(" -_ ") && !names_somebody("\u{200b}\u{e0061}"));
        assert!(!names_somebody("\u{3164}"), "a filler is a letter to Unicode, and nothing to the eye");
    }

    #[test]
    fn a_name_in_another_unicode_form_is_the_same_person_s() {
        for (one, other) in [
            ("\u{e5}sa", "a\u{30a}sa"),
            ("\u{e5}sa", "a\u{200d}\u{30a}sa"),
            ("\u{1ed9}", "o\u{302}\u{323}"),
            ("\u{1ed9}", "o\u{323}\u{302}"),
            ("ａｄａ", "ada"),
            ("oﬃce", "office"),
            ("𝒶𝒹𝒶", "ADA"),
            ("\u{130}lker", "ilker"),
            ("\u{130}lker", "I\u{307}LKER"),
            ("한글", "\u{1112}\u{1161}\u{11ab}\u{1100}\u{1173}\u{11af}"),
        ] {
            is_one(one, other);
        }
    }

    #[test]
    fn a_name_that_looks_like_another_s_is_that_one_s() {
        for (one, other) in [
            // Cyrillic for Latin: small, capital, and the other way round.
            ("\u{430}d\u{430}", "ada"),
            ("\u{410}da", "Ada"),
            ("\u{420}\u{430}ul", "paul"),
            ("\u{412}ob", "Bob"),
            ("Pau\u{49}", "Paul"),
            ("pau1", "paul"),
            ("B0b", "bob"),
            // Greek.
            ("b\u{3bf}b", "bob"),
        ] {
            is_one(one, other);
        }
    }
}
