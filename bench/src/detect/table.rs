//! The table of what was measured.

use super::traffic::SPAN_S;
use super::{Detected, Measured, Subject};
use crate::report::spread;

/// A figure's column.
const WIDTH: usize = 24;

pub(crate) fn print(detected: &Detected) {
    let Detected { rule_sets, events, proved_events, even, quiet, quiet_beside_hot, flood, .. } = detected;
    println!(
        "\nthe detection engine on one core: about {events} proved events over {SPAN_S} s of their own time, without HTTP and bus"
    );
    println!("rules: {rule_sets}");
    println!("alerts are those that the log was made for, and over its first {proved_events} events those of the plain plan");
    println!("median [least..most] of {} rounds; event → alert at half of the round's events/s", flood.rounds.len());
    let columns = ["events/s", "us/event", "alert p50 ms", "alert p99 ms", "state MiB"];
    head("tenants and rules", &columns);
    for subject in even {
        let figures = [rate(subject), cost(subject), p50(subject), p99(subject), state(subject)];
        row(&subject.name(), &figures);
    }

    let quiet_rate = spread(&quiet.rounds, |round| round.rate).0;
    println!(
        "\na hot tenant that sends as much as a thousand quiet ones; event → alert of the quiet ones, who send about {quiet_rate:.0}/s"
    );
    head("", &columns);
    for (name, subject) in [("quiet ones alone", quiet), ("the same beside the hot one", quiet_beside_hot)] {
        let figures = [rate(subject), cost(subject), p50(subject), p99(subject), state(subject)];
        row(&format!("{name}, {} rules", subject.rules), &figures);
    }

    let (told, refused) = (figure(flood, 0, |round| round.expected as f64), figure(flood, 0, |round| round.refused as f64));
    println!("\njunk keys in one tenant, slow sequences in it and in another");
    head("", &["events/s", "us/event", "alert p99 ms", "sequences told of", "junk refused"]);
    row(&format!("flood, {} rules", flood.rules), &[rate(flood), cost(flood), p99(flood), told, refused]);
    println!("every sequence was told of by the rule and each copy of it");

    let of_all: Vec<Measured> = detected.subjects().flat_map(|subject| subject.rounds.iter().cloned()).collect();
    let (proof, least, most) = spread(&of_all, |round| round.proof_us);
    println!("\nreading, proving and linking an event, before the engine has it: {proof:.1} us [{least:.1}..{most:.1}]");
}

fn head(first: &str, columns: &[&str; 5]) {
    print!("{first:<40}");
    columns.iter().for_each(|column| print!("{column:>WIDTH$}"));
    println!();
}

fn row(first: &str, figures: &[String; 5]) {
    print!("{first:<40}");
    figures.iter().for_each(|figure| print!("{figure:>WIDTH$}"));
    println!();
}

/// Median [least..most] over the rounds, with so many digits behind the point.
fn figure(subject: &Subject, digits: usize, of: impl Fn(&Measured) -> f64) -> String {
    let (median, least, most) = spread(&subject.rounds, of);
    format!("{median:.digits$} [{least:.digits$}..{most:.digits$}]")
}

fn rate(subject: &Subject) -> String {
    figure(subject, 0, |round| round.per_second)
}

fn cost(subject: &Subject) -> String {
    figure(subject, 1, |round| round.event_us)
}

fn p50(subject: &Subject) -> String {
    figure(subject, 1, |round| round.latency.p50_us / 1e3)
}

fn p99(subject: &Subject) -> String {
    figure(subject, 1, |round| round.latency.p99_us / 1e3)
}

fn state(subject: &Subject) -> String {
    figure(subject, 0, |round| round.state_mib)
}
