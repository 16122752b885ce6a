//! `GET /metrics`: the registry of edge and control, and what ledger and detection count themselves, in OpenMetrics text.

#[cfg(feature = "soc")]
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use aegis_bus::Bus;
#[cfg(feature = "soc")]
use aegis_detect::{Worker, WorkerStats};
#[cfg(feature = "soc")]
use aegis_lake::LakeWorker;
use aegis_ledger::{COMMIT_SECONDS_BUCKETS, Ledger};
#[cfg(feature = "soc")]
use aegis_model::PARTITIONS;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::confirmed::Meter;

/// What `/metrics` shows.
#[derive(Clone, Debug)]
pub(crate) struct Exposition {
    registry: Arc<Registry>,
}

impl Exposition {
    #[cfg(feature = "soc")]
    pub(crate) fn new(
        mut registry: Registry,
        carried: Carried,
        ledgers: Vec<Ledger>,
        confirmed: Arc<Meter>,
        worker: Arc<Worker>,
        lake: Option<Arc<LakeWorker>>,
    ) -> Self {
        registry.register_collector(Box::new(carried));
        registry.register_collector(Box::new(Counted { ledgers }));
        registry.register_collector(Box::new(Confirmed(confirmed)));
        registry.register_collector(Box::new(Detected(worker)));
        if let Some(lake) = lake {
            registry.register_collector(Box::new(Written(lake)));
        }
        Self { registry: Arc::new(registry) }
    }

    /// Of an edge: nothing detects here.
    pub(crate) fn of_edge(mut registry: Registry, bus: Arc<dyn Bus>, ledger: Ledger, confirmed: Arc<Meter>) -> Self {
        registry.register_collector(Box::new(Carried { connections: vec![("edge", Arc::clone(&bus))], bus }));
        registry.register_collector(Box::new(Counted { ledgers: vec![ledger] }));
        registry.register_collector(Box::new(Confirmed(confirmed)));
        Self { registry: Arc::new(registry) }
    }

    pub(crate) fn router(&self) -> Router {
        Router::new().route("/metrics", get(metrics)).with_state(self.clone())
    }
}

async fn metrics(State(exposition): State<Exposition>) -> Response {
    let mut body = String::new();
    match text::encode(&mut body, &exposition.registry) {
        Ok(()) => ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], body).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// What the servers are that carry the bus, and who is connected to them.
#[derive(Debug)]
pub(crate) struct Carried {
    pub(crate) bus: Arc<dyn Bus>,
    /// By whose they are; none where the bus is a file.
    pub(crate) connections: Vec<(&'static str, Arc<dyn Bus>)>,
}

impl Collector for Carried {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        if !self.connections.is_empty() {
            let help = "1 while a role's connection to NATS is up";
            let mut family = encoder.encode_descriptor("aegis_nats_connected", help, None, MetricType::Gauge)?;
            for (role, bus) in &self.connections {
                ConstGauge::new(i64::from(bus.is_connected())).encode(family.encode_family(&[("role", *role)])?)?;
            }
            let help =
                "servers of NATS that a role's connection left, since nothing came of what was asked or published over them";
            let mut family = encoder.encode_descriptor("aegis_nats_servers_left", help, None, MetricType::Counter)?;
            for (role, bus) in &self.connections {
                ConstCounter::new(bus.servers_left()).encode(family.encode_family(&[("role", *role)])?)?;
            }
        }
        let Some(servers) = self.bus.servers() else { return Ok(()) };
        let help =
            "1; the oldest and newest version of the NATS servers, the least level of JetStream's API, and what all of them have";
        let (version, newest) = (servers.version.to_string(), servers.newest.to_string());
        let api_level = servers.api_level.map_or_else(String::new, |level| level.to_string());
        let features = servers.feature_names();
        let labels: [(&str, &str); 4] =
            [("version", version.as_str()), ("newest", &newest), ("api_level", &api_level), ("features", &features)];
        let mut family = encoder.encode_descriptor("aegis_nats_server_info", help, None, MetricType::Gauge)?;
        ConstGauge::new(1i64).encode(family.encode_family(&labels)?)?;
        gauge(&mut encoder, "aegis_nats_servers", "NATS servers of the cluster that answered", servers.count as u64)
    }
}

/// Counters that live elsewhere, read when asked.
#[derive(Debug)]
struct Counted {
    ledgers: Vec<Ledger>,
}

impl Collector for Counted {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let stats: Vec<aegis_ledger::LedgerStats> = self.ledgers.iter().map(Ledger::stats).collect();
        let sum = |of: fn(&aegis_ledger::LedgerStats) -> u64| stats.iter().map(of).sum::<u64>();
        counter(
            &mut encoder,
            "ase_emitted",
            "events sealed and handed to the bus",
            sum(|s| s.receipts.saturating_sub(s.backlog)),
        )?;
        counter(&mut encoder, "ase_emit_dropped", "best-effort events lost for good", sum(|s| s.dropped_total))?;
        gauge(&mut encoder, "ase_spool_backlog", "sealed events not yet on the bus", sum(|s| s.backlog))?;
        counter(&mut encoder, "aegis_ledger_failed_commits", "ledger transactions that failed", sum(|s| s.failed_commits))?;
        counter(
            &mut encoder,
            "aegis_ledger_failed_checkpoints",
            "checkpoints of ledgers' logs that failed",
            sum(|s| s.failed_checkpoints),
        )?;
        gauge(
            &mut encoder,
            "aegis_ledger_writable",
            "1 while every ledger can be written",
            u64::from(stats.iter().all(|s| s.writable)),
        )?;
        let bounds = COMMIT_SECONDS_BUCKETS.into_iter().chain([f64::MAX]);
        let commits: Vec<(f64, u64)> =
            bounds.enumerate().map(|(i, bound)| (bound, stats.iter().map(|s| s.commit_seconds[i]).sum())).collect();
        let seconds = stats.iter().map(|s| s.commit_seconds_sum).sum();
        histogram(&mut encoder, "aegis_ledger_commit_seconds", "time of one durable commit", seconds, &commits)?;
        Ok(())
    }
}

/// What comes of control's confirmations to an edge.
#[derive(Debug)]
struct Confirmed(Arc<Meter>);

impl Collector for Confirmed {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let help = "stretches of lanes that were shipped again because the lake did not have them";
        counter(&mut encoder, "aegis_lake_shipped_again", help, self.0.again.load(Ordering::Relaxed))?;
        let help = "confirmations that are not control's, or no answer to what was asked, and changed nothing";
        counter(&mut encoder, "aegis_confirmations_refused", help, self.0.refused.load(Ordering::Relaxed))?;
        let help = "receipts that were pruned from the ledger, since history and lake have them";
        counter(&mut encoder, "aegis_ledger_pruned", help, self.0.pruned.load(Ordering::Relaxed))?;
        let help = "requests for receipts that the ledger has pruned";
        counter(&mut encoder, "aegis_ledger_pruned_asked", help, self.0.pruned_asked.load(Ordering::Relaxed))?;
        let help = "requests for receipts that the ledger does not have and did not prune";
        counter(&mut encoder, "aegis_ledger_lost_asked", help, self.0.lost_asked.load(Ordering::Relaxed))
    }
}

/// What detection counts.
#[cfg(feature = "soc")]
#[derive(Debug)]
struct Detected(Arc<Worker>);

#[cfg(feature = "soc")]
impl Collector for Detected {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        of_detection(encoder, &self.0.stats())
    }
}

#[cfg(feature = "soc")]
fn of_detection(mut encoder: DescriptorEncoder<'_>, detection: &WorkerStats) -> Result<(), std::fmt::Error> {
    lag(&mut encoder, detection.lag)?;
    let help = "events that came after their watermark, and observations that are too far ahead of the bus";
    counter(&mut encoder, "aegis_detect_late", help, detection.late)?;
    let help = "events that proved themselves and came after their watermark";
    counter(&mut encoder, "aegis_detect_late_verified", help, detection.late_verified)?;
    let help = "tenants of whom late events wait to be caught up over the lake";
    gauge(&mut encoder, "aegis_detect_late_waiting", help, detection.late_waiting)?;
    let help = "alerts that were found when late events were caught up";
    counter(&mut encoder, "aegis_detect_late_alerts", help, detection.late_alerts)?;
    let help = "parts of a tenant's time, and rules, that late events were not caught up for";
    counter(&mut encoder, "aegis_detect_late_given_up", help, detection.late_given_up)?;
    counter(&mut encoder, "aegis_detect_malformed", "messages detection put aside", detection.malformed)?;
    let help = "records of rules that are not control's or older than what it said since, and changed nothing";
    counter(&mut encoder, "aegis_detect_rule_records_refused", help, detection.rule_records_refused)?;
    counter(&mut encoder, "aegis_detect_verify_failures", "events that failed verification at detection", detection.broken)?;
    let help = "records of episodes given up because their stream was full";
    counter(&mut encoder, "aegis_detect_episodes_dropped", help, detection.episodes_dropped)?;
    counter(&mut encoder, "aegis_detect_refused", "messages of detection that the bus will never take", detection.refused)?;
    per_rule(&mut encoder, detection)?;
    let detected = [(f64::MAX, detection.detect_seconds_count)];
    let help = "from an alert's last event to its detection";
    histogram(&mut encoder, "soc_mttd_seconds", help, detection.detect_seconds_sum, &detected)
}

/// One consumer reads all partitions in one order, so there is one series, and its label says which partitions it is of. How many of the messages that
/// it has not read are of one partition, no bus tells without a consumer for each.
#[cfg(feature = "soc")]
fn lag(encoder: &mut DescriptorEncoder<'_>, lag: u64) -> Result<(), std::fmt::Error> {
    let help = "events that detection has not taken yet, of these partitions";
    let mut family = encoder.encode_descriptor("aegis_consumer_lag", help, None, MetricType::Gauge)?;
    let partitions = format!("{:02}-{:02}", 0, PARTITIONS - 1);
    let value = i64::try_from(lag).unwrap_or(i64::MAX);
    ConstGauge::new(value).encode(family.encode_family(&[("partition", partitions.as_str())])?)
}

/// What the lake counts.
#[cfg(feature = "soc")]
#[derive(Debug)]
struct Written(Arc<LakeWorker>);

#[cfg(feature = "soc")]
impl Collector for Written {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let lake = self.0.stats();
        gauge(&mut encoder, "aegis_lake_lag", "events that the lake has not read yet", lake.lag)?;
        let help = "stretches of lanes that the lake lacks before something that it has, and asks for";
        gauge(&mut encoder, "aegis_lake_gaps", help, lake.gaps as u64)?;
        gauge(&mut encoder, "aegis_lake_stands_still", "1 while the lake cannot go on", u64::from(lake.trouble.is_some()))?;
        counter(&mut encoder, "aegis_lake_rows", "events written to the lake", lake.rows)?;
        counter(&mut encoder, "aegis_lake_files", "files written to the lake, merged ones too", lake.files)?;
        counter(&mut encoder, "aegis_lake_failures", "how often the lake failed and tried again", lake.failures)?;
        let help = "how often files of the lake could not be merged or removed";
        counter(&mut encoder, "aegis_lake_tidy_failures", help, lake.untidied)
    }
}

fn counter(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> Result<(), std::fmt::Error> {
    let metric = ConstCounter::new(value);
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> Result<(), std::fmt::Error> {
    let metric = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}

/// `buckets` are counts of their own, not cumulative; the last bound is infinity.
fn histogram(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    sum: f64,
    buckets: &[(f64, u64)],
) -> Result<(), std::fmt::Error> {
    let count = buckets.iter().map(|(_, count)| count).sum();
    encoder.encode_descriptor(name, help, None, MetricType::Histogram)?.encode_histogram::<NoLabelSet>(sum, count, buckets, None)
}

/// A number of each rule: its name, what it says, and where it stands.
#[cfg(feature = "soc")]
type OfRule = (&'static str, &'static str, fn(&aegis_detect::RuleStats) -> u64);

#[cfg(feature = "soc")]
const RULE_GAUGES: [OfRule; 5] = [
    ("aegis_rule_quarantined", "1 while a rule does not run because it failed", |rule| u64::from(rule.quarantined.is_some())),
    ("aegis_rule_tenants_set_aside", "tenants for whose events a rule does not run", |rule| rule.set_aside.len() as u64),
    ("aegis_rule_warming", "tenants of whom a rule does not know its window yet, and tells nothing until it does", |rule| {
        rule.warming
    }),
    ("aegis_rule_window_lost", "tenants of whom a restart lost some of the events that a rule looks back to", |rule| {
        rule.window_lost
    }),
    (
        "aegis_rule_window_unsaved",
        "tenants of whom a checkpoint has no room for all the events that a rule looks back to",
        |rule| rule.window_unsaved,
    ),
];

#[cfg(feature = "soc")]
const RULE_COUNTERS: [OfRule; 4] = [
    ("aegis_rule_refused", "events of new keys that a full quota of a rule refused", |rule| rule.refused),
    ("aegis_rule_given_up", "oldest events and matches that a rule gave up for a quota", |rule| rule.given_up),
    ("aegis_rule_overruns", "instants and row patterns that cost more than a rule may", |rule| rule.overruns),
    ("aegis_rule_unfounded", "rows of a rule whose evidence is no event of its window", |rule| rule.unfounded),
];

/// The name under which the rules that tenants have of their own are counted together: how many there are, and what they are called, is for
/// tenants to say.
#[cfg(feature = "soc")]
const OF_TENANTS: &str = "of_tenants";

/// Rules that every tenant has, each by itself (while a change of one reaches the partitions, two versions of it run, and are counted as one), and behind
/// them what tenants have of their own, as one.
#[cfg(feature = "soc")]
fn counted(rules: &[aegis_detect::RuleStats]) -> Vec<aegis_detect::RuleStats> {
    let (own, common): (Vec<_>, Vec<_>) = rules.iter().cloned().partition(|rule| rule.tenant.is_some());
    let mut counted: Vec<aegis_detect::RuleStats> = Vec::new();
    for rule in common {
        match counted.iter().position(|known| known.rule_id == rule.rule_id) {
            Some(place) => counted[place] = with(std::mem::take(&mut counted[place]), rule),
            None => counted.push(rule),
        }
    }
    let first = own.first().map(|_| aegis_detect::RuleStats { rule_id: OF_TENANTS.to_owned(), ..Default::default() });
    let sum = first.map(|first| own.into_iter().fold(first, with));
    counted.extend(sum);
    counted
}

#[cfg(feature = "soc")]
fn with(mut sum: aegis_detect::RuleStats, rule: aegis_detect::RuleStats) -> aegis_detect::RuleStats {
    sum.evals += rule.evals;
    sum.seconds += rule.seconds;
    sum.refused += rule.refused;
    sum.given_up += rule.given_up;
    sum.overruns += rule.overruns;
    sum.unfounded += rule.unfounded;
    sum.warming += rule.warming;
    sum.window_lost += rule.window_lost;
    sum.window_unsaved += rule.window_unsaved;
    sum.quarantined = sum.quarantined.or(rule.quarantined);
    sum.set_aside.extend(rule.set_aside);
    sum
}

/// `soc_detections_total{rule,severity}`, the time each rule took, and what it did not look at. Rules that every tenant has are few and named by
/// operators, so the labels are bounded.
#[cfg(feature = "soc")]
fn per_rule(encoder: &mut DescriptorEncoder<'_>, detection: &WorkerStats) -> Result<(), std::fmt::Error> {
    let mut family = encoder.encode_descriptor("soc_detections", "alerts by rule and severity", None, MetricType::Counter)?;
    let mut alerts: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for rule in &detection.rules {
        let name = if rule.tenant.is_some() { OF_TENANTS } else { rule.rule_id.as_str() };
        *alerts.entry((name, rule.severity.as_str())).or_default() += rule.alerts;
    }
    for ((name, severity), count) in alerts {
        ConstCounter::new(count).encode(family.encode_family(&[("rule", name), ("severity", severity)])?)?;
    }
    let of_itself = [("rule", aegis_detect::IMPAIRED_RULE), ("severity", aegis_detect::IMPAIRED_SEVERITY.as_str())];
    ConstCounter::new(detection.impaired).encode(family.encode_family(&of_itself)?)?;
    let rules = counted(&detection.rules);
    for (name, help, of) in RULE_GAUGES {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for rule in &rules {
            let value = i64::try_from(of(rule)).unwrap_or(i64::MAX);
            ConstGauge::new(value).encode(family.encode_family(&[("rule", rule.rule_id.as_str())])?)?;
        }
    }
    for (name, help, of) in RULE_COUNTERS {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for rule in &rules {
            ConstCounter::new(of(rule)).encode(family.encode_family(&[("rule", rule.rule_id.as_str())])?)?;
        }
    }
    let mut family =
        encoder.encode_descriptor("aegis_rule_eval_seconds", "time spent on each rule", None, MetricType::Histogram)?;
    for rule in &rules {
        let labels = [("rule", rule.rule_id.as_str())];
        let evals = [(f64::MAX, rule.evals)];
        family.encode_family(&labels)?.encode_histogram::<NoLabelSet>(rule.seconds, rule.evals, &evals, None)?;
    }
    Ok(())
}

#[cfg(all(test, feature = "soc"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use aegis_detect::RuleStats;
    use aegis_model::TenantId;

    use super::*;

    #[derive(Debug)]
    struct Fixed(WorkerStats);

    impl Collector for Fixed {
        fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
            of_detection(encoder, &self.0)
        }
    }

    fn rule(id: &str, tenant: Option<&str>, first: u64) -> RuleStats {
        RuleStats {
            rule_id: id.to_owned(),
            severity: "high".to_owned(),
            tenant: tenant.map(|tenant| TenantId::new(tenant).unwrap()),
            alerts: first,
            refused: first + 1,
            given_up: first + 2,
            overruns: first + 3,
            unfounded: first + 4,
            evals: first + 5,
            seconds: 0.5,
            warming: if tenant.is_some() { 1 } else { first + 6 },
            window_lost: first + 7,
            window_unsaved: first + 8,
            ..RuleStats::default()
        }
    }

    /// What is shown of them.
    fn shown(stats: WorkerStats) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Fixed(stats)));
        let mut text = String::new();
        text::encode(&mut text, &registry).unwrap();
        text
    }

    #[test]
    fn each_number_of_detection_stands_under_its_own_name() {
        let mut stopped = rule("R-2", None, 20);
        stopped.quarantined = Some("it failed".to_owned());
        stopped.set_aside.insert(TenantId::new("acme").unwrap(), "too long".to_owned());
        let text = shown(WorkerStats {
            rules: vec![rule("R-1", None, 10), stopped, rule("O-1", Some("acme"), 100), rule("O-2", Some("other"), 1000)],
            lag: 1,
            late: 2,
            late_verified: 3,
            late_waiting: 11,
            late_alerts: 12,
            late_given_up: 13,
            malformed: 4,
            rule_records_refused: 10,
            broken: 5,
            episodes_dropped: 6,
            refused: 7,
            impaired: 8,
            detect_seconds_sum: 1.5,
            detect_seconds_count: 9,
            ..WorkerStats::default()
        });
        for line in [
            "# TYPE aegis_consumer_lag gauge",
            "aegis_consumer_lag{partition=\"00-63\"} 1",
            "# TYPE aegis_detect_late counter",
            "aegis_detect_late_total 2",
            "aegis_detect_late_verified_total 3",
            "# TYPE aegis_detect_late_waiting gauge",
            "aegis_detect_late_waiting 11",
            "aegis_detect_late_alerts_total 12",
            "aegis_detect_late_given_up_total 13",
            "aegis_detect_malformed_total 4",
            "aegis_detect_rule_records_refused_total 10",
            "aegis_detect_verify_failures_total 5",
            "aegis_detect_episodes_dropped_total 6",
            "aegis_detect_refused_total 7",
            "# TYPE soc_detections counter",
            "soc_detections_total{rule=\"R-1\",severity=\"high\"} 10",
            "soc_detections_total{rule=\"R-2\",severity=\"high\"} 20",
            "soc_detections_total{rule=\"of_tenants\",severity=\"high\"} 1100",
            "soc_detections_total{rule=\"AEG-0001\",severity=\"high\"} 8",
            "# TYPE aegis_rule_quarantined gauge",
            "aegis_rule_quarantined{rule=\"R-1\"} 0",
            "aegis_rule_quarantined{rule=\"R-2\"} 1",
            "aegis_rule_tenants_set_aside{rule=\"R-2\"} 1",
            "aegis_rule_warming{rule=\"R-1\"} 16",
            "aegis_rule_warming{rule=\"R-2\"} 26",
            "aegis_rule_warming{rule=\"of_tenants\"} 2",
            "# TYPE aegis_rule_window_lost gauge",
            "aegis_rule_window_lost{rule=\"R-1\"} 17",
            "aegis_rule_window_lost{rule=\"of_tenants\"} 1114",
            "aegis_rule_window_unsaved{rule=\"R-1\"} 18",
            "aegis_rule_window_unsaved{rule=\"of_tenants\"} 1116",
            "# TYPE aegis_rule_refused counter",
            "aegis_rule_refused_total{rule=\"R-1\"} 11",
            "aegis_rule_given_up_total{rule=\"R-1\"} 12",
            "aegis_rule_overruns_total{rule=\"R-1\"} 13",
            "aegis_rule_unfounded_total{rule=\"R-1\"} 14",
            "aegis_rule_refused_total{rule=\"of_tenants\"} 1102",
            "# TYPE aegis_rule_eval_seconds histogram",
            "aegis_rule_eval_seconds_count{rule=\"R-1\"} 15",
            "aegis_rule_eval_seconds_sum{rule=\"R-1\"} 0.5",
            "aegis_rule_eval_seconds_sum{rule=\"of_tenants\"} 1.0",
            "# TYPE soc_mttd_seconds histogram",
            "soc_mttd_seconds_sum 1.5",
            "soc_mttd_seconds_count 9",
        ] {
            assert!(text.lines().any(|shown| shown == line), "{line} is not in\n{text}");
        }
        for name in ["acme", "other", "O-1", "O-2"] {
            assert!(!text.contains(name), "{name} is a tenant's word");
        }
    }
}
