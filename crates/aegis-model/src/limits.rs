//! How long names and texts may be, the same at every door: what an edge takes can be registered, shown, edited and kept.

/// Longest id or name (of a tool, an action, an agent, a user, a run, a channel, a group), characters.
pub const MAX_ID: usize = 256;
/// Longest name of a resource, characters; no more than [`MAX_RESOURCE_BYTES`] in UTF-8.
pub const MAX_RESOURCE: usize = 1024;
/// Longest name of a resource, bytes: what is registered is looked up by it, and an index of Postgres has room for some 2,700 in all.
pub const MAX_RESOURCE_BYTES: usize = 2048;
/// Longest free text (a reason, a description), and longest URL of a callback, characters.
pub const MAX_TEXT: usize = 2048;

/// Why a text is no name; reads on behind what it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("must not be empty")]
    Empty,
    #[error("is longer than {0} characters")]
    TooLong(usize),
    #[error("is longer than {0} bytes")]
    TooManyBytes(usize),
    #[error("must not contain control characters")]
    ControlCharacter,
}

/// A text of 1 to `max` characters without control characters.
pub fn check_name(text: &str, max: usize) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty);
    }
    check_label(text, max)
}

/// The same, or empty.
pub fn check_label(text: &str, max: usize) -> Result<(), NameError> {
    // A character has a byte at least, so a short text need not be counted.
    if text.len() > max && text.chars().count() > max {
        return Err(NameError::TooLong(max));
    }
    if text.chars().any(char::is_control) {
        return Err(NameError::ControlCharacter);
    }
    Ok(())
}

/// What a call, an edit or the registry may name as its resource. A call's may be empty.
pub fn check_resource(text: &str) -> Result<(), NameError> {
    check_label(text, MAX_RESOURCE)?;
    if text.len() > MAX_RESOURCE_BYTES {
        return Err(NameError::TooManyBytes(MAX_RESOURCE_BYTES));
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn characters_are_counted_and_not_bytes() {
        for longest in ["x".repeat(MAX_ID), "é".repeat(MAX_ID), "\u{1f600}".repeat(MAX_ID)] {
            assert_eq!(check_name(&longest, MAX_ID), Ok(()));
            assert_eq!(check_name(&format!("{longest}x"), MAX_ID), Err(NameError::TooLong(MAX_ID)));
        }
    }

    #[test]
    fn a_name_is_not_empty_and_has_no_control_character() {
        assert_eq!(check_name("", MAX_ID), Err(NameError::Empty));
        assert_eq!(check_label("", MAX_ID), Ok(()));
        for bad in ["a\nb", "a\u{0}b", "\u{7f}", "\u{85}"] {
            assert_eq!(check_name(bad, MAX_ID), Err(NameError::ControlCharacter), "{bad:?}");
        }
    }

    #[test]
    fn a_resource_has_a_bound_in_bytes_too() {
        assert_eq!(check_resource(&"x".repeat(MAX_RESOURCE)), Ok(()));
        assert_eq!(check_resource(&"é".repeat(MAX_RESOURCE)), Ok(()));
        assert_eq!(check_resource(""), Ok(()));
        assert_eq!(check_resource(&"x".repeat(MAX_RESOURCE + 1)), Err(NameError::TooLong(MAX_RESOURCE)));
        assert_eq!(check_resource(&"\u{1f600}".repeat(513)), Err(NameError::TooManyBytes(MAX_RESOURCE_BYTES)));
        assert_eq!(check_resource("a\nb"), Err(NameError::ControlCharacter));
    }

    #[test]
    fn the_api_s_document_says_the_same() {
        let document = include_str!("../../../docs/openapi.yaml");
        let bound_of = |schema: &str| -> Option<usize> {
            let (_, behind) = document.split_once(&format!("\n    {schema}:\n"))?;
            let (_, behind) = behind.split_once("maxLength: ")?;
            behind.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
        };
        let bounds = ["Id", "Label", "ResourceName", "Text"].map(bound_of);
        assert_eq!(bounds, [Some(MAX_ID), Some(MAX_ID), Some(MAX_RESOURCE), Some(MAX_TEXT)]);
    }
}
