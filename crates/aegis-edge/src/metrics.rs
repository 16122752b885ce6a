//! What an edge counts (CONTRACTS §12). No tenant, agent, resource or argument is ever a label.

use aegis_model::Decision;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DecisionLabel {
    decision: &'static str,
}

/// The edge's metrics; clones share their counts.
#[derive(Clone, Debug)]
pub struct EdgeMetrics {
    pub(crate) authorize_seconds: Histogram,
    pub(crate) policy_seconds: Histogram,
    decisions: Family<DecisionLabel, Counter>,
    dry_runs: Family<DecisionLabel, Counter>,
    pub(crate) provenance_denials: Counter,
    /// A gauge that only rises: its contracted name has no `_total`.
    pub(crate) canonicalization_skew: Gauge,
    pub(crate) feed_refused: Counter,
    pub(crate) feed_age_seconds: Gauge,
    pub(crate) receipt_unavailable: Counter,
    pub(crate) run_labels_lost: Counter,
    pub(crate) run_labels_unread: Gauge,
}

impl EdgeMetrics {
    /// Registers the edge's metrics.
    pub fn register(registry: &mut Registry) -> Self {
        // 50 µs doubling up to about 1.6 s; 5 µs doubling up to about 20 ms.
        let metrics = Self {
            authorize_seconds: Histogram::new(exponential_buckets(50e-6, 2.0, 16)),
            policy_seconds: Histogram::new(exponential_buckets(5e-6, 2.0, 13)),
            decisions: Family::default(),
            dry_runs: Family::default(),
            provenance_denials: Counter::default(),
            canonicalization_skew: Gauge::default(),
            feed_refused: Counter::default(),
            feed_age_seconds: Gauge::default(),
            receipt_unavailable: Counter::default(),
            run_labels_lost: Counter::default(),
            run_labels_unread: Gauge::default(),
        };
        registry.register(
            "aegis_authorize_duration_seconds",
            "time to answer an authorize call",
            metrics.authorize_seconds.clone(),
        );
        registry.register("aegis_policy_eval_seconds", "time Cedar took for one decision", metrics.policy_seconds.clone());
        registry.register("aegis_decisions", "decisions given", metrics.decisions.clone());
        registry.register("aegis_dry_runs", "those of them that were dry runs, which leave no receipt", metrics.dry_runs.clone());
        registry.register("provenance_denials", "denies of calls with an untrusted source", metrics.provenance_denials.clone());
        registry.register(
            "canonicalization_version_skew",
            "calls with an unknown canon_version",
            metrics.canonicalization_skew.clone(),
        );
        registry.register("aegis_control_feed_refused", "entries of the control feed refused", metrics.feed_refused.clone());
        registry.register(
            "aegis_control_feed_age_seconds",
            "time since the control feed was last read whole",
            metrics.feed_age_seconds.clone(),
        );
        registry.register(
            "aegis_receipt_unavailable",
            "denies because no receipt could be kept",
            metrics.receipt_unavailable.clone(),
        );
        registry.register(
            "aegis_run_labels_lost",
            "labels of runs that a tenant's full share of the memory could not hold: such runs count as unknown",
            metrics.run_labels_lost.clone(),
        );
        registry.register(
            "aegis_run_labels_unread",
            "1 from a start beside other edges until it was read what they made of runs",
            metrics.run_labels_unread.clone(),
        );
        metrics
    }

    pub(crate) fn count_decision(&self, decision: Decision, dry_run: bool) {
        let label = DecisionLabel { decision: decision.as_str() };
        self.decisions.get_or_create(&label).inc();
        if dry_run {
            self.dry_runs.get_or_create(&label).inc();
        }
    }
}
