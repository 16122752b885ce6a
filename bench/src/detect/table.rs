//! The tables of what was measured.

use std::collections::BTreeSet;

use super::traffic::SPAN_S;
use super::{Detected, Disturbed, Filled, Measured, Subject};
use crate::report::spread;

/// A figure's column, and the first one.
const WIDTH: usize = 23;
const FIRST_WIDTH: usize = 40;
const COLUMNS: [&str; 7] =
    ["events/s", "µs/event", "batch p50 ms", "batch p99 ms", "at half p50 ms", "at half p99 ms", "memory MiB"];

pub(crate) fn print(detected: &Detected) {
    let Detected { rule_sets, events, proved_events, even, disturbed, .. } = detected;
    println!(
        "\nthe detection engine on one core: about {events} proved events over {SPAN_S} s of their own time; no HTTP, no bus"
    );
    println!("alerts are those that the log was made for, and over its first {proved_events} events those of the plain plan");
    println!("median [least..most] of {} rounds; event → alert:", even.first().map_or(0, |subject| subject.rounds.len()));
    println!("batch: from the call with an alert's last event to the end of that which told it, ticks one after the other");
    println!("at half: from the time at which it was due, at half of the round's events/s");
    for Filled { set, how, tools } in rule_sets {
        println!("\n{} (tools in the log: {tools}): {how}", set.name());
        head("", &COLUMNS);
        let of_set: Vec<&Subject> = even.iter().filter(|subject| subject.set == *set).collect();
        of_set.iter().for_each(|subject| row(&subject.name(), &figures(subject)));
        growth(&of_set).iter().for_each(|line| println!("{line}"));
    }
    if let Some(disturbed) = disturbed {
        print_disturbed(disturbed);
    }

    let of_all: Vec<Measured> = detected.subjects().flat_map(|subject| subject.rounds.iter().cloned()).collect();
    let (proof, least, most) = spread(&of_all, |round| round.proof_us);
    println!("\nreading, proving and linking an event, before the engine has it: {proof:.1} µs [{least:.1}..{most:.1}]");
}

/// What an event costs with the most rules by what it costs with the fewest, for each number of tenants.
fn growth(of_set: &[&Subject]) -> Vec<String> {
    let tenants: BTreeSet<usize> = of_set.iter().map(|subject| subject.tenants).collect();
    let grown = tenants.into_iter().filter_map(|tenants| {
        let alike: Vec<&Subject> = of_set.iter().copied().filter(|subject| subject.tenants == tenants).collect();
        let (fewest, most) =
            (alike.iter().min_by_key(|subject| subject.rules)?, alike.iter().max_by_key(|subject| subject.rules)?);
        let cost = |subject: &Subject| spread(&subject.rounds, |round| round.event_us).0;
        let (from, to, times) = (fewest.rules, most.rules, cost(most) / cost(fewest));
        (from < to).then(|| format!("{tenants} tenants, {from} → {to} rules: an event costs {times:.1} × as much"))
    });
    grown.collect()
}

fn print_disturbed(disturbed: &Disturbed) {
    let Disturbed { quiet, quiet_beside_hot, flood } = disturbed;
    let quiet_rate = spread(&quiet.rounds, |round| round.rate).0;
    println!(
        "\n{}: a hot tenant that sends as much as a thousand quiet ones; event → alert is that of the quiet ones,",
        quiet.set.name()
    );
    println!("at half: at {quiet_rate:.0} events/s of theirs in both rows");
    head("", &COLUMNS);
    for (name, subject) in [("quiet ones alone", quiet), ("the same beside the hot one", quiet_beside_hot)] {
        row(&format!("{name}, {} rules", subject.rules), &figures(subject));
    }

    let expected = figure(flood, 0, |round| round.expected as f64);
    let refused = figure(flood, 0, |round| round.refused as f64);
    println!("\n{}: junk keys in one tenant, slow sequences in it and in another:", flood.set.name());
    println!("told of are {expected}, which is all of them,");
    println!("each by the rule and every copy of it; events of new keys that a full quota refused, over all rules: {refused}");
    head("", &COLUMNS);
    row(&format!("flood, {} rules", flood.rules), &figures(flood));
}

fn head(first: &str, columns: &[&str]) {
    print!("{first:<FIRST_WIDTH$}");
    columns.iter().for_each(|column| print!("{column:>WIDTH$}"));
    println!();
}

fn row(first: &str, figures: &[String]) {
    print!("{first:<FIRST_WIDTH$}");
    figures.iter().for_each(|figure| print!("{figure:>WIDTH$}"));
    println!();
}

/// In the order of `COLUMNS`.
fn figures(subject: &Subject) -> [String; COLUMNS.len()] {
    [
        figure(subject, 0, |round| round.per_second),
        figure(subject, 1, |round| round.event_us),
        figure(subject, 1, |round| round.latency_at_saturation.p50_us / 1e3),
        figure(subject, 1, |round| round.latency_at_saturation.p99_us / 1e3),
        figure(subject, 1, |round| round.latency.p50_us / 1e3),
        figure(subject, 1, |round| round.latency.p99_us / 1e3),
        figure(subject, 0, |round| round.rules_mib + round.state_mib),
    ]
}

/// Median [least..most] over the rounds, with so many digits behind the point.
fn figure(subject: &Subject, digits: usize, of: impl Fn(&Measured) -> f64) -> String {
    let (median, least, most) = spread(&subject.rounds, of);
    format!("{median:.digits$} [{least:.digits$}..{most:.digits$}]")
}
