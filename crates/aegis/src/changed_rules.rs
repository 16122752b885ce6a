//! What operators made of the rules that every tenant has, as a start tells of it: it holds over restarts and updates, in place of what the program has.

use aegis_detect::CommonRules;
use aegis_store::StandingCommonRule;

/// What there is to say of one rule.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Told<'a> {
    /// An operator's version stands in place of the program's, or as one more.
    Changed(&'a StandingCommonRule),
    /// The same, and the program has another text of the rule than when that was made: nobody has compared the two.
    ProgramsIsNew(&'a StandingCommonRule),
    /// The same, and the program has no such rule any more.
    ProgramsIsGone(&'a StandingCommonRule),
}

/// What stands in another way than the program has it.
pub(crate) fn told<'a>(common: &CommonRules, standing: &'a [StandingCommonRule]) -> Vec<Told<'a>> {
    let changed = standing.iter().filter(|rule| !rule.is_of_program());
    changed
        .map(|rule| match (common.text(&rule.rule_id), rule.program_hash.as_deref()) {
            (None, Some(_)) => Told::ProgramsIsGone(rule),
            (Some((_, hash)), before) if before != Some(hash) => Told::ProgramsIsNew(rule),
            _ => Told::Changed(rule),
        })
        .collect()
}

impl Told<'_> {
    pub(crate) fn log(&self) {
        let (Self::Changed(rule) | Self::ProgramsIsNew(rule) | Self::ProgramsIsGone(rule)) = self;
        let StandingCommonRule { rule_id: id, name, version, mode, changed_at, .. } = rule;
        match self {
            Self::Changed(_) => {
                tracing::info!(id, name, version, %mode, %changed_at, "an operator's version of this rule stands")
            }
            Self::ProgramsIsNew(_) => tracing::warn!(
                id,
                name,
                version,
                %mode,
                %changed_at,
                "an operator's version of this rule stands, and the program's is another one than it was made over: compare them; \
                 `aegis rules switch {id} --mode program` takes the program's"
            ),
            Self::ProgramsIsGone(_) => tracing::warn!(
                id,
                name,
                version,
                %mode,
                %changed_at,
                "an operator's version of this rule stands, and the program has no such rule any more; \
                 `aegis rules switch {id} --mode disabled` turns it off"
            ),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use aegis_detect::RuleSet;
    use aegis_model::{RuleMode, Timestamp};

    #[test]
    fn a_start_tells_what_is_not_as_the_program_has_it_and_where_the_program_s_is_another_since() {
        let common = RuleSet::shipped().unwrap().common();
        let (_, hash) = common.text("AEG-3002").unwrap();
        let standing = |rule_id: &str, text: &str, program_hash: Option<&str>| StandingCommonRule {
            rule_id: rule_id.to_owned(),
            name: "deny-storm".to_owned(),
            version: 2,
            mode: RuleMode::LogOnly,
            text: text.to_owned(),
            hash: String::new(),
            program_hash: program_hash.map(str::to_owned),
            changed_at: Timestamp::from_micros(0),
            revision: 1,
        };
        let rules = [
            standing("AEG-3002", "text", Some(hash)),
            standing("AEG-3002", "", Some(hash)),
            standing("AEG-3002", "text", Some("of an older program")),
            standing("AEG-3002", "text", None),
            standing("OPS-1", "text", None),
            standing("OPS-1", "text", Some("of an older program")),
        ];
        let expected = [
            Told::Changed(&rules[0]),
            Told::ProgramsIsNew(&rules[2]),
            Told::ProgramsIsNew(&rules[3]),
            Told::Changed(&rules[4]),
            Told::ProgramsIsGone(&rules[5]),
        ];
        assert_eq!(told(&common, &rules), expected);
    }
}
