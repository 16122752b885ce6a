//! Tables for people, JSON for programs.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;
use serde_json::{Value, json};

use crate::contain::Contained;
use crate::drain::Drained;
use crate::fleet::Fleet;
use crate::load::percentile;
use crate::parts::Parts;
use crate::response::Response;
use crate::story::{Round, Served};

pub(crate) fn print_parts(parts: &Parts) {
    println!("\nparts of the action path, one thread, {} samples each", parts.policy_eval_us.len());
    println!("{:<34}{:>10}{:>10}{:>10}", "", "p50 µs", "p95 µs", "p99 µs");
    for (name, taken) in [
        ("action_hash of 1 KiB", &parts.action_hash_1kib_us),
        ("policy evaluation, by Cedar", &parts.policy_eval_us),
        ("policy evaluation, remembered", &parts.policy_recall_us),
        ("event emit (made, and handed over)", &parts.emit_us),
    ] {
        println!("{name:<34}{:>10.2}{:>10.2}{:>10.2}", percentile(taken, 0.5), percentile(taken, 0.95), percentile(taken, 0.99));
    }
}

/// Median, least and most of one figure over the rounds.
pub(crate) fn spread<R>(rounds: &[R], figure: impl Fn(&R) -> f64) -> (f64, f64, f64) {
    let mut sorted: Vec<f64> = rounds.iter().map(figure).collect();
    sorted.sort_by(f64::total_cmp);
    (percentile(&sorted, 0.5), percentile(&sorted, 0.0), percentile(&sorted, 1.0))
}

pub(crate) fn print_served(served: &Served) {
    let echo = spread(&served.echo, |r| r.per_second).0;
    println!("\nauthorize (durable receipts, events shipped, detection on) against a bare axum JSON echo");
    println!(
        "latency on a fixed schedule of {:.0} requests/s; median [least..most] of {} rounds",
        served.rate,
        served.echo.len()
    );
    let subjects = [
        ("echo", &served.echo),
        ("echo after a synced write", &served.durable_echo),
        ("authorize, mutating", &served.mutating),
        ("authorize, low-risk read", &served.read),
    ];
    print_rounds(subjects.into_iter().map(|(name, rounds)| (name.to_owned(), rounds)).collect(), echo);
    let seconds: Vec<String> = served.catch_up_s.iter().map(|s| format!("{s:.1}")).collect();
    println!("after each mutating round at saturation, detection and history caught up within {} s", seconds.join(", "));
}

/// A table of subjects with their rounds, against `echo` requests a second.
fn print_rounds(subjects: Vec<(String, &Vec<Round>)>, echo: f64) {
    println!("{:<34}{:>28}{:>8}{:>22}{:>22}", "", "requests/s at saturation", "× echo", "p50 µs", "p99 µs");
    for (name, rounds) in subjects {
        let (median, least, most) = spread(rounds, |r| r.per_second);
        let (p50, p50_least, p50_most) = spread(rounds, |r| r.p50_us);
        let (p99, p99_least, p99_most) = spread(rounds, |r| r.p99_us);
        println!(
            "{name:<34}{:>28}{:>8.2}{:>22}{:>22}",
            format!("{median:.0} [{least:.0}..{most:.0}]"),
            median / echo,
            format!("{p50:.0} [{p50_least:.0}..{p50_most:.0}]"),
            format!("{p99:.0} [{p99_least:.0}..{p99_most:.0}]"),
        );
    }
}

pub(crate) fn print_fleet(fleet: &Fleet) {
    let subjects = fleet.subjects();
    let echo = spread(subjects[0].1, |r| r.per_second).0;
    println!("\nauthorize at an edge of its own (durable receipts), by what works behind it, all on this machine");
    println!(
        "latency on a fixed schedule of {:.0} requests/s; median [least..most] of {} rounds",
        fleet.rate(),
        subjects[0].1.len()
    );
    print_rounds(subjects, echo);
    let drained: Vec<String> =
        fleet.drained().iter().map(|(waiting, per_second)| format!("{waiting:.0} at {per_second:.0}/s")).collect();
    println!("receipts that had waited for NATS were shipped: {}", drained.join(", "));
}

pub(crate) fn print_contained(all: &[Contained]) {
    println!("\nfrom a deny storm at one edge to every edge denying, one storm after another");
    println!("{:<44}{:>10}{:>10}{:>10}", "", "p50 ms", "p95 ms", "p99 ms");
    for Contained { edges, deny_to_alert_ms, detection_to_all_ms, deny_to_all_ms } in all {
        let rows = [
            ("fifth deny → alert made", deny_to_alert_ms),
            ("alert made → all deny", detection_to_all_ms),
            ("fifth deny → all deny", deny_to_all_ms),
        ];
        for (name, taken) in rows {
            let name = format!("{edges} edges, {name} ({} storms)", taken.len());
            let at = |share| percentile(taken, share);
            println!("{name:<44}{:>10.1}{:>10.1}{:>10.1}", at(0.5), at(0.95), at(0.99));
        }
    }
}

pub(crate) fn print_drained(drained: &Drained) {
    let Drained { backlog, shipped_s, caught_up_s } = drained;
    println!(
        "\na backlog of {backlog:.0} receipts: shipped within {shipped_s:.1} s ({:.0}/s), detected on and in the history within {caught_up_s:.1} s ({:.0}/s)",
        backlog / shipped_s,
        backlog / caught_up_s
    );
}

/// One measurement as `<name>.json`.
pub(crate) fn write_json(out: &Path, name: &str, measured: &impl Serialize) -> anyhow::Result<()> {
    let (path, _) = save_json(out, name, measured)?;
    println!("\nwritten to {}", path.display());
    Ok(())
}

/// The same without a word: the file, and what is in it.
pub(crate) fn save_json(out: &Path, name: &str, measured: &impl Serialize) -> anyhow::Result<(PathBuf, String)> {
    let path = out.join(format!("{name}.json"));
    let text = serde_json::to_string_pretty(&json!({"machine": machine(), name: measured}))?;
    std::fs::write(&path, &text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok((path, text))
}

pub(crate) fn print_response(response: &Response) {
    println!("\nfrom event to response, {} deny storms one after another", response.deny_to_frozen_ms.len());
    println!("{:<34}{:>10}{:>10}{:>10}", "", "p50 ms", "p95 ms", "p99 ms");
    for (name, taken) in
        [("event → alert", &response.event_to_alert_ms), ("fifth deny → edge denies", &response.deny_to_frozen_ms)]
    {
        println!("{name:<34}{:>10.1}{:>10.1}{:>10.1}", percentile(taken, 0.5), percentile(taken, 0.95), percentile(taken, 0.99));
    }
}

pub(crate) fn write(out: &Path, parts: &Parts, served: &Served, response: &Response) -> anyhow::Result<()> {
    let summary = |taken: &[f64]| -> Value {
        json!({"samples": taken.len(), "p50": percentile(taken, 0.5), "p95": percentile(taken, 0.95), "p99": percentile(taken, 0.99)})
    };
    let report = json!({
        "machine": machine(),
        "parts_us": {
            "action_hash_1kib": summary(&parts.action_hash_1kib_us),
            "policy_eval": summary(&parts.policy_eval_us),
            "policy_recall": summary(&parts.policy_recall_us),
            "emit": summary(&parts.emit_us),
        },
        "authorize": served,
        "response_ms": {"event_to_alert": summary(&response.event_to_alert_ms), "deny_to_frozen": summary(&response.deny_to_frozen_ms)},
    });
    let path = out.join("authorize.json");
    std::fs::write(&path, serde_json::to_string_pretty(&report)?).with_context(|| format!("cannot write {}", path.display()))?;
    println!("\nwritten to {}", path.display());
    Ok(())
}

fn machine() -> Value {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .unwrap_or("")
        .trim_start_matches([' ', '\t', ':'])
        .to_owned();
    json!({"cpu": model, "cores": std::thread::available_parallelism().map_or(0, usize::from), "version": env!("CARGO_PKG_VERSION")})
}
