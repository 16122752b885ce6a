//! What a test remembers of what an engine told, and how a log comes to one.

use std::collections::BTreeSet;

use aegis_detect::{Engine, IMPAIRED_RULE, TickOutput};
use aegis_model::{Alert, SecurityEvent};

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

/// What stands of a log that comes so many events at a time, over a restart behind one of these parts; and those of its events that came in time.
pub(crate) fn over_a_restart(
    new: impl Fn() -> Engine,
    log: &[SecurityEvent],
    size: usize,
    restart: usize,
) -> (Standing, Vec<SecurityEvent>) {
    let (mut engine, mut standing) = (new(), Standing::default());
    let mut taken: Vec<SecurityEvent> = Vec::new();
    for (place, part) in log.chunks(size).enumerate() {
        let output = engine.tick(part.to_vec());
        taken.extend(part.iter().filter(|event| !output.late.contains(&event.event_id)).cloned());
        standing.take(output);
        if place == restart {
            let checkpoint = serde_json::to_string(&engine.checkpoint()).unwrap();
            let of_windows = taken.iter().filter(|e| engine.horizon(&e.tenant_id).is_none_or(|horizon| e.ts >= horizon));
            let of_windows: Vec<SecurityEvent> = of_windows.cloned().collect();
            engine = new();
            engine.restore(serde_json::from_str(&checkpoint).unwrap(), of_windows, true);
        }
    }
    standing.take(engine.finish());
    (standing, taken)
}

/// A log in parts that end where it is cut; the cuts are in order.
pub(crate) fn parts<'a>(log: &'a [SecurityEvent], cuts: &[usize]) -> Vec<&'a [SecurityEvent]> {
    let (mut parts, mut from) = (Vec::new(), 0);
    for cut in cuts.iter().copied().chain([log.len()]) {
        if cut > from {
            parts.push(&log[from..cut]);
            from = cut;
        }
    }
    parts
}
