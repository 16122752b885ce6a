//! Where detection has the lanes followed of what it reads from the lake for a rule that contains: over the receipts in control's history.
//! Promises that control's store is asked by the runtime that owns its connections, that a page of receipts is in memory at a time, and that what is
//! followed is followed on a thread of its own, behind the others.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use aegis_control::{Control, PublishedReceipt};
use aegis_detect::{Followed, PastLanes};
use aegis_keys::KeyRing;
use aegis_model::TenantId;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// Receipts that are followed at most, and bytes of them: a tenant's of a day, and of what came since.
const MOST: usize = 400_000;
const MOST_BYTES: usize = 2 << 30;
/// The history is a moment behind detection: how long it is waited for, and how often it is looked.
const LOOKS: u32 = 20;
const LOOK: Duration = Duration::from_millis(200);

/// The receipts of control's history.
#[derive(Clone, Debug)]
pub(crate) struct LanesInHistory {
    control: Arc<Control>,
    /// Whose receipts are believed.
    ring: KeyRing,
    /// The runtime that owns the store's connections.
    runtime: Handle,
}

impl LanesInHistory {
    /// To be made on the runtime that owns the store's connections.
    pub(crate) fn new(control: Arc<Control>, ring: KeyRing) -> Self {
        Self { control, ring, runtime: Handle::current() }
    }

    /// The next receipts of a lane; those that detection waits for may be on their way.
    async fn next(&self, tenant: &TenantId, lane: &str, after: i64) -> Result<Vec<PublishedReceipt>, String> {
        for look in 0..LOOKS {
            if look > 0 {
                tokio::time::sleep(LOOK).await;
            }
            let (control, tenant, name) = (Arc::clone(&self.control), tenant.clone(), lane.to_owned());
            let page = self.runtime.spawn(async move { control.receipts_of_lane(&tenant, &name, after).await });
            let page = page.await.map_err(|error| error.to_string())?.map_err(|problem| problem.message)?;
            if !page.is_empty() {
                return Ok(page);
            }
        }
        Err(format!("the history has nothing of the lane {lane} behind its receipt {after} yet"))
    }

    async fn walk(self, lanes: PastLanes, is_waited_for: impl Fn() -> bool) -> Followed {
        let (tenant, from, heads) = (lanes.tenant().clone(), lanes.since(), lanes.lanes());
        let (control, of) = (Arc::clone(&self.control), tenant.clone());
        let first = self.runtime.spawn(async move { control.lanes_since(&of, from).await });
        let first = first.await.map_err(|error| error.to_string())?.map_err(|problem| problem.message)?;
        let first: BTreeMap<String, i64> = first.into_iter().collect();
        let mut following = lanes.begin(self.ring.clone());
        let (mut left, mut left_bytes) = (MOST, MOST_BYTES);
        for (lane, head) in heads {
            let Some(first) = first.get(&lane) else {
                return Err(format!("the history has nothing of that time of the lane {lane} yet"));
            };
            // The one before the first of the time says that it is the first.
            let mut seq = first.saturating_sub(2).max(0);
            while seq < head {
                let page = self.next(&tenant, &lane, seq).await?;
                if !is_waited_for() {
                    return Err("nobody waits any more".to_owned());
                }
                for receipt in page.iter().take_while(|receipt| receipt.seq <= head) {
                    if let Err(reason) = following.take(&receipt.wire, receipt.bus_ts) {
                        return Ok(Err(reason));
                    }
                    let bytes = left_bytes.checked_sub(receipt.wire.len());
                    let (Some(rest), Some(bytes)) = (left.checked_sub(1), bytes) else {
                        return Ok(Err(format!("there are more than {MOST} receipts, or more bytes of them than are followed")));
                    };
                    (left, left_bytes) = (rest, bytes);
                }
                seq = page.last().map_or(head, |last| last.seq);
            }
        }
        Ok(following.finish())
    }
}

impl aegis_detect::PastReceipts for LanesInHistory {
    fn follow(&self, lanes: PastLanes) -> oneshot::Receiver<Followed> {
        let (answers, answer) = oneshot::channel();
        let this = self.clone();
        let work = move || async move {
            let followed = this.walk(lanes, || !answers.is_closed()).await;
            let _nobody_waits = answers.send(followed);
        };
        // Where it does not start nobody answers, and it is asked again.
        if let Err(error) = aegis_threads::spawn("aegis-warm-lanes", work) {
            tracing::warn!(%error, "lanes cannot be followed for a rule that warms up");
        }
        answer
    }
}
