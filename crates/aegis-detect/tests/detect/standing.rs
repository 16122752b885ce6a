//! What a test remembers of what an engine told.

use std::collections::BTreeSet;

use aegis_detect::{IMPAIRED_RULE, TickOutput};
use aegis_model::Alert;

/// What stands, and what is said of detection itself.
#[derive(Default)]
pub(crate) struct Standing {
    pub(crate) alerts: BTreeSet<String>,
    pub(crate) impaired: Vec<Alert>,
}

impl Standing {
    pub(crate) fn take(&mut self, output: TickOutput) {
        assert!(output.quarantined.is_empty(), "{:?}", output.quarantined);
        for alert in output.alerts {
            if alert.rule_id == IMPAIRED_RULE {
                self.impaired.push(alert);
            } else {
                self.alerts.insert(alert.alert_id);
            }
        }
        for retraction in output.retractions {
            assert!(self.alerts.remove(&retraction.alert_id), "retracted, and never told");
        }
    }
}
