//! The words that closed attributes can have. A policy that compares one with another word has a typing error that Cedar,
//! for which they are strings, does not see: such a forbid would never forbid.

use aegis_model::{DataAccess, Destination, RiskLevel, SourceTrust};

const TRUST: [&str; SourceTrust::ALL.len()] = {
    let mut words = [""; SourceTrust::ALL.len()];
    let mut index = 0;
    while index < words.len() {
        words[index] = SourceTrust::ALL[index].as_str();
        index += 1;
    }
    words
};
const RISK: [&str; 4] =
    [RiskLevel::Low.as_str(), RiskLevel::Medium.as_str(), RiskLevel::High.as_str(), RiskLevel::Critical.as_str()];
const DATA_ACCESS: [&str; 3] = [DataAccess::None.as_str(), DataAccess::Internal.as_str(), DataAccess::Sensitive.as_str()];
const DESTINATION: [&str; 2] = [Destination::Internal.as_str(), Destination::External.as_str()];
/// `unknown` is not among them: it has become one of these before a policy sees it.
const VISIBILITY: [&str; 2] = [aegis_model::Visibility::Public.as_str(), aegis_model::Visibility::Private.as_str()];

/// The words of a closed attribute; none if any string may stand there.
pub(crate) fn words_of(path: &[String]) -> Option<&'static [&'static str]> {
    let [variable, attribute] = path else { return None };
    match (variable.as_str(), attribute.as_str()) {
        ("context", "trust_level" | "root_trust_level") => Some(&TRUST),
        ("context", "risk_level" | "agent_risk_tier") => Some(&RISK),
        ("context", "data_access") => Some(&DATA_ACCESS),
        ("context", "destination") => Some(&DESTINATION),
        ("resource", "visibility") => Some(&VISIBILITY),
        _ => None,
    }
}

/// The candidate nearest to `word`, if it is near enough to be what was meant.
pub(crate) fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let farthest = (word.chars().count() / 3).clamp(1, 4);
    candidates
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|(far, _)| *far <= farthest)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance, in characters.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, right) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(left != *right);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_found_only_when_near() {
        assert_eq!(nearest("base_brnach", ["base_branch", "title"].into_iter()), Some("base_branch"));
        assert_eq!(nearest("amount", ["base_branch", "title"].into_iter()), None);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
    }
}
