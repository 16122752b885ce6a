//! What control counts (CONTRACTS §12). No agent, resource, argument or tenant stands in a label.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// First bucket, factor and number of buckets of `soc_mttc_seconds`: 10 ms to about three hours.
const MTTC_BUCKETS: (f64, f64, u16) = (0.01, 2.0, 20);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallbackLabel {
    result: &'static str,
}

/// Control's metrics; clones share their values.
#[derive(Clone, Debug)]
pub struct Metrics {
    pub(crate) hash_mismatches: Counter,
    pub(crate) verify_failures: Counter,
    pub(crate) dead_letters: Counter,
    pub(crate) approvals_given_up: Counter,
    pub(crate) feed_rewrites: Counter,
    pub(crate) notices_refused: Counter,
    pub(crate) pruned_asked: Counter,
    /// Answers of edges that they have lost what they were asked for.
    pub(crate) lost_asked: Counter,
    pub(crate) run_labels_forgotten: Counter,
    pub(crate) edges_live: Gauge,
    pub(crate) edges_silent: Gauge,
    pub(crate) history_gaps: Gauge,
    pub(crate) incidents_open: Gauge,
    pub(crate) callbacks_waiting: Gauge,
    callbacks: Family<CallbackLabel, Counter>,
    time_to_contain: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        let (start, factor, count) = MTTC_BUCKETS;
        Self {
            hash_mismatches: Counter::default(),
            verify_failures: Counter::default(),
            dead_letters: Counter::default(),
            approvals_given_up: Counter::default(),
            feed_rewrites: Counter::default(),
            notices_refused: Counter::default(),
            pruned_asked: Counter::default(),
            lost_asked: Counter::default(),
            run_labels_forgotten: Counter::default(),
            edges_live: Gauge::default(),
            edges_silent: Gauge::default(),
            history_gaps: Gauge::default(),
            incidents_open: Gauge::default(),
            callbacks_waiting: Gauge::default(),
            callbacks: Family::default(),
            time_to_contain: Histogram::new(exponential_buckets(start, factor, count)),
        }
    }
}

impl Metrics {
    /// Registers every metric under its name. Counters get their `_total` when they are written out.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "approval_hash_mismatch",
            "Consumes and frozen actions whose hash was not the approved one",
            self.hash_mismatches.clone(),
        );
        registry.register("receipt_verify_failures", "Receipts that did not verify", self.verify_failures.clone());
        registry.register("control_dead_letters", "Malformed messages kept aside by control", self.dead_letters.clone());
        registry.register(
            "control_approvals_given_up",
            "Frozen actions that were set aside because their decisions had not arrived and they took the room of others",
            self.approvals_given_up.clone(),
        );
        registry.register(
            "control_feed_rewrites",
            "Times that the control feed was written again because a bucket had lost an entry",
            self.feed_rewrites.clone(),
        );
        registry.register(
            "control_notices_refused",
            "Heartbeats, acknowledgements and requests of edges that were not believed, or were more than is taken of one edge",
            self.notices_refused.clone(),
        );
        registry.register(
            "control_pruned_receipts_asked",
            "Answers of edges that they have pruned what they were asked for",
            self.pruned_asked.clone(),
        );
        registry.register(
            "control_lost_receipts_asked",
            "Answers of edges that they have lost what they were asked for, and did not prune it",
            self.lost_asked.clone(),
        );
        registry.register(
            "control_run_labels_forgotten",
            "Labels of runs that edges are no longer told of because their tenant has too many",
            self.run_labels_forgotten.clone(),
        );
        registry.register("aegis_edges_live", "Enrolled edges that were heard within the last seconds", self.edges_live.clone());
        registry.register(
            "aegis_edges_silent",
            "Edges that lived, did not stop as they should, and are not heard: their tenants were told",
            self.edges_silent.clone(),
        );
        registry.register(
            "control_history_gaps",
            "Stretches of receipts that the history lacks, and that are asked for",
            self.history_gaps.clone(),
        );
        registry.register("incidents_open", "Incidents that are not closed", self.incidents_open.clone());
        registry.register(
            "aegis_callbacks",
            "Attempts to deliver a callback, by result: delivered, failed (another follows), given_up",
            self.callbacks.clone(),
        );
        registry.register(
            "aegis_callbacks_waiting",
            "Callbacks that are neither delivered nor given up",
            self.callbacks_waiting.clone(),
        );
        registry.register(
            "soc_mttc_seconds",
            "From the first evidence event to the enforced containment",
            self.time_to_contain.clone(),
        );
    }

    /// Counts an attempt to deliver a callback.
    pub(crate) fn count_callback(&self, result: &'static str) {
        self.callbacks.get_or_create(&CallbackLabel { result }).inc();
    }

    /// Observes a time to contain, in seconds.
    pub fn observe_time_to_contain(&self, seconds: f64) {
        self.time_to_contain.observe(seconds.max(0.0));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_the_contract_s() {
        let (metrics, mut registry) = (Metrics::default(), Registry::default());
        metrics.register(&mut registry);
        metrics.observe_time_to_contain(0.2);
        metrics.count_callback("delivered");
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for name in [
            "approval_hash_mismatch_total 0",
            "receipt_verify_failures_total 0",
            "incidents_open 0",
            "soc_mttc_seconds_count 1",
            "aegis_callbacks_waiting 0",
            "aegis_callbacks_total{result=\"delivered\"} 1",
        ] {
            assert!(text.contains(name), "{name} is missing in\n{text}");
        }
    }
}
