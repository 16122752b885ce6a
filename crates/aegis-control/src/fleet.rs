//! The edges: what they ask of the control feed, that they live, and what they enforce. Promises that nothing an edge says of itself is believed
//! unless it signed it, and that an edge is told of its own tenants only.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aegis_bus::feed::{ConfirmRequest, FeedPage, FeedRequest, LaneRequest, page};
use aegis_bus::{AskForMissing, BusError, Heard, subject, users};
use aegis_keys::{Pinned, Scope, sign_notice, verify_notice};
use aegis_model::{Beat, ContainmentAck, ContainmentState, Enforced, Heartbeat, Missing, TenantId, Timestamp};
use aegis_store::EdgeLife;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::control::Control;
use crate::heard::HeardEdge;
use crate::input::MAX_ID;
use crate::notices::{self, Notices};
use crate::problem::Problem;
use crate::reply::Json;
use crate::routes::Call;
use crate::silence::LastHeard;

/// How long an edge is waited for that is to enforce something, when its time to contain is taken.
const LONGEST_WAIT: Duration = Duration::from_secs(300);
/// Requests of one edge that are answered at once: it asks three at a time. What is asked beyond that gets no answer.
const MOST_ASKING: usize = 4;
/// First token of where the server takes answers to another account.
const BETWEEN_ACCOUNTS: &str = "_R_.";
/// A history that had read everything within this time has what was published half a minute ago.
const CAUGHT_UP: Duration = Duration::from_secs(10);
/// Before the bus is listened to again.
const RETRY: Duration = Duration::from_secs(1);

/// What is known of the edges.
#[derive(Debug, Default)]
pub(crate) struct Fleet {
    /// By edge: its tenants, as it was enrolled last.
    enrolled: RwLock<BTreeMap<String, BTreeSet<TenantId>>>,
    edges: Mutex<BTreeMap<String, HeardEdge>>,
    /// What they said and nobody has checked yet.
    pub(crate) notices: Notices,
    changed: Notify,
    /// Requests under way, by edge.
    asking: Mutex<HashMap<String, usize>>,
    beats: AtomicU64,
}

/// Who enforces a containment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Enforcement {
    /// Of the edge in this process, if there is one.
    pub(crate) here: Option<bool>,
    pub(crate) edges: EdgesEnforcing,
}

impl Enforcement {
    /// True if every edge that lives enforces it, and there is one.
    pub(crate) fn is_whole(&self) -> bool {
        self.here != Some(false) && self.edges.is_whole() && (self.here.is_some() || self.edges.enforcing > 0)
    }
}

/// What the edges of a tenant make of a containment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct EdgesEnforcing {
    /// Edges that serve the tenant and were heard within the last seconds.
    pub(crate) live: usize,
    /// How many of those enforce it.
    pub(crate) enforcing: usize,
    /// Edges that serve the tenant and are not heard: they enforce what they knew.
    pub(crate) silent: Vec<String>,
    /// When the last of the live ones began to; absent while one does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) since: Option<Timestamp>,
}

impl EdgesEnforcing {
    fn is_whole(&self) -> bool {
        self.enforcing == self.live
    }
}

/// An edge as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct EdgeShown {
    pub(crate) edge_id: String,
    pub(crate) live: bool,
    /// How many starts of it live: more than one are clones.
    pub(crate) starts: usize,
    /// What its tenants were told of it last; absent where it was never heard.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) life: Option<&'static str>,
    #[serde(flatten)]
    pub(crate) last: Option<Value>,
}

/// The edges that serve the caller's tenant.
pub(crate) fn list(control: &Control, call: &Call) -> Result<Response, Problem> {
    let page = call.query.page()?;
    let edges = control.edges_shown(call.tenant());
    let shown: Vec<_> = edges.into_iter().skip(page.offset as usize).take(page.limit as usize).collect();
    Ok(Json(shown).into_response())
}

impl Control {
    /// An edge was enrolled for these tenants, and for no others any more.
    pub(crate) fn edge_serves(&self, edge_id: &str, tenants: &BTreeSet<TenantId>) {
        self.fleet.enrolled.write().insert(edge_id.to_owned(), tenants.clone());
    }

    fn edges_of(&self, tenant: &TenantId) -> Vec<String> {
        let enrolled = self.fleet.enrolled.read();
        enrolled.iter().filter(|(_, tenants)| tenants.contains(tenant)).map(|(edge_id, _)| edge_id.clone()).collect()
    }

    /// The tenants that an edge serves, as it was enrolled last.
    pub(crate) fn tenants_of_edge(&self, edge_id: &str) -> BTreeSet<TenantId> {
        self.fleet.enrolled.read().get(edge_id).cloned().unwrap_or_default()
    }

    pub(crate) fn is_enrolled(&self, edge_id: &str) -> bool {
        self.fleet.enrolled.read().contains_key(edge_id)
    }

    /// True of an edge of one tenant: what it says of its load says nothing of anybody else.
    pub(crate) fn serves_one_tenant(&self, edge_id: &str) -> bool {
        self.fleet.enrolled.read().get(edge_id).is_some_and(|tenants| tenants.len() == 1)
    }

    pub(crate) fn serves(&self, edge_id: &str, tenant: &str) -> bool {
        let enrolled = self.fleet.enrolled.read();
        enrolled.get(edge_id).is_some_and(|tenants| tenants.iter().any(|served| served.as_str() == tenant))
    }

    /// Which edges enforce a containment state now.
    pub(crate) fn edges_enforcing(&self, state: &ContainmentState) -> EdgesEnforcing {
        let target = Enforced::of(state, Timestamp::default()).target;
        let edges = self.fleet.edges.lock();
        let mut found = EdgesEnforcing::default();
        let mut since = None;
        for edge_id in self.edges_of(&state.tenant_id) {
            match edges.get(&edge_id).filter(|edge| edge.live_starts() > 0) {
                None => found.silent.push(edge_id),
                Some(edge) => {
                    found.live += 1;
                    if let Some(at) = edge.enforces(&target, state.revision) {
                        found.enforcing += 1;
                        since = since.max(Some(at));
                    }
                }
            }
        }
        found.since = since.filter(|_| found.is_whole());
        found
    }

    /// Waits until every live edge of the tenant enforces the state.
    pub(crate) async fn wait_enforced(&self, state: &ContainmentState, wait: Duration) -> EdgesEnforcing {
        let enforced = async {
            loop {
                let changed = self.fleet.changed.notified();
                let found = self.edges_enforcing(state);
                if found.is_whole() {
                    return found;
                }
                // An edge that falls silent is waited for no longer.
                let _changed_or_not = timeout(RETRY, changed).await;
            }
        };
        timeout(wait, enforced).await.unwrap_or_else(|_elapsed| self.edges_enforcing(state))
    }

    /// Since when every live edge enforces the state: waits as long as a time to contain is worth taking. None if one never did.
    pub(crate) async fn enforced_since(&self, state: &ContainmentState) -> Option<Timestamp> {
        self.wait_enforced(state, LONGEST_WAIT).await.since
    }

    /// The edges that serve a tenant.
    pub(crate) fn edges_shown(&self, tenant: &TenantId) -> Vec<EdgeShown> {
        let edges = self.fleet.edges.lock();
        let of_tenant = self.edges_of(tenant).into_iter();
        let views = of_tenant.map(|edge_id| {
            let known = edges.get(&edge_id);
            let last = known.and_then(HeardEdge::last).map(|last| {
                let mut said = json!({
                    "heard_at": last.at, "clock_offset_us": last.clock_offset_us, "clock_suspect": last.clock_suspect,
                    "feed_age_s": last.feed_age_s,
                });
                if self.serves_one_tenant(&edge_id) {
                    said["backlog"] = json!(last.backlog);
                }
                said
            });
            let starts = known.map_or(0, HeardEdge::live_starts);
            let life = self.lives.of_edge(&edge_id).map(EdgeLife::as_str);
            EdgeShown { live: starts > 0, starts, edge_id, life, last }
        });
        views.collect()
    }

    pub(crate) fn live_edges(&self) -> usize {
        self.fleet.edges.lock().values().filter(|edge| edge.live_starts() > 0).count()
    }

    pub(crate) fn take_heartbeat(&self, heard: &Heard) -> Result<(), String> {
        let (heartbeat, pinned) = verify_notice::<Heartbeat>(&self.ring, &heard.payload).map_err(|error| error.to_string())?;
        check_speaker(&pinned, &heartbeat.edge_id, &heard.subject)?;
        if heartbeat.boot.len() > MAX_ID
            || [&heartbeat.after, &heartbeat.epoch].into_iter().flatten().any(|name| name.len() > MAX_ID)
            || heartbeat.enforced.iter().any(|enforced| is_too_long(&enforced.target.target_id))
        {
            return Err("a name in it is too long".to_owned());
        }
        let mut edges = self.fleet.edges.lock();
        let edge = edges.entry(heartbeat.edge_id.clone()).or_default();
        let (edge_id, before) = (heartbeat.edge_id.clone(), (edge.clock_is_suspect(), edge.live_starts()));
        // The leave of a start that another was heard after is that start's alone: somebody may have held it back until the other is gone.
        let is_newest = edge.last().is_none_or(|last| last.boot == heartbeat.boot);
        let (is_leaving, last) = (heartbeat.leaving && is_newest, LastHeard::of(&heartbeat));
        edge.take(heartbeat, |enforced| self.serves(&edge_id, enforced.target.tenant_id.as_str()))?;
        if edge.clock_is_suspect() && !before.0 {
            tracing::warn!(edge_id, "the clock of an edge is off by more than a second after correction");
        }
        if edge.live_starts() > before.1.max(1) {
            tracing::warn!(edge_id, starts = edge.live_starts(), "an edge runs more than once: its keys are in two places");
        }
        drop(edges);
        self.lives.heard(&edge_id, is_leaving, last);
        self.fleet.changed.notify_waiters();
        Ok(())
    }

    pub(crate) fn take_ack(&self, heard: &Heard) -> Result<(), String> {
        let (ack, pinned) = match verify_notice::<ContainmentAck>(&self.ring, &heard.payload) {
            Ok(verified) => verified,
            // The other thing that an edge says there.
            Err(error) => return self.take_gone(heard).map_err(|other| format!("{error}; {other}")),
        };
        check_speaker(&pinned, &ack.edge_id, &heard.subject)?;
        if is_too_long(&ack.enforced.target.target_id) || ack.boot.len() > MAX_ID {
            return Err("a name in it is too long".to_owned());
        }
        if !self.serves(&ack.edge_id, ack.enforced.target.tenant_id.as_str()) {
            return Err("it is about a tenant of others".to_owned());
        }
        let mut edges = self.fleet.edges.lock();
        edges.entry(ack.edge_id.clone()).or_default().acknowledge(&ack.boot, &ack.enforced);
        drop(edges);
        self.fleet.changed.notify_waiters();
        Ok(())
    }

    async fn answer_feed(&self, heard: &Heard) -> Result<(), String> {
        let edge_id = edge_of(&heard.subject);
        let Some(reply_to) = &heard.reply_to else { return Err("it says not where to answer".to_owned()) };
        // Nowhere but there, or whoever asks could have control write where it may not itself. Between accounts the server gives the place a name.
        let in_its_inbox = reply_to.starts_with(&format!("{}.", users::inbox_prefix(edge_id)));
        if !in_its_inbox && !reply_to.starts_with(BETWEEN_ACCOUNTS) {
            return Err("the answer is wanted outside the edge's inbox".to_owned());
        }
        let answer = self.feed_page(edge_id, &heard.payload).await;
        let answer = answer.unwrap_or_else(|error| FeedPage::refused(error.to_string())).write();
        let answer = answer.map_err(|error| error.to_string())?;
        self.bus.tell(reply_to, answer).await.map_err(|error| error.to_string())
    }

    async fn feed_page(&self, edge_id: &str, request: &[u8]) -> Result<FeedPage, BusError> {
        if let Ok(request) = serde_json::from_slice::<LaneRequest>(request) {
            return Ok(self.lane_heads(edge_id, &request).await);
        }
        if let Ok(request) = serde_json::from_slice::<ConfirmRequest>(request) {
            return Ok(self.confirm(edge_id, &request).await);
        }
        let Ok(request) = serde_json::from_slice::<FeedRequest>(request) else {
            return Ok(FeedPage::refused("the request cannot be read"));
        };
        let first = request.filter.split('.').next().unwrap_or_default();
        let is_its_own = self.serves(edge_id, first) || request.filter == subject::BEAT;
        if !is_its_own {
            return Ok(FeedPage::refused("the edge is not enrolled for that tenant"));
        }
        // What control has published, without asking the server for a whole bucket each time.
        match self.published_page(&request).await {
            Some(page) => Ok(page),
            None => page(&*self.bus, &request).await,
        }
    }

    /// True while the history has all that was published some moments ago.
    pub(crate) fn history_is_whole(&self) -> bool {
        self.caught_up.lock().is_some_and(|at| at.elapsed() < CAUGHT_UP)
    }

    /// Writes control's sign of life.
    pub(crate) async fn beat(&self) -> Result<(), BusError> {
        let beat = Beat { at: self.clock.now(), start: self.start, n: self.fleet.beats.fetch_add(1, Ordering::Relaxed) };
        let signed = sign_notice(&self.key, &beat).map_err(|error| BusError::Unavailable { reason: error.to_string() })?;
        self.bus.kv_put(aegis_bus::Bucket::Control, subject::BEAT, Bytes::from(signed)).await.map(drop)
    }
}

/// An edge says what control registered, which is bounded in characters.
fn is_too_long(target_id: &str) -> bool {
    target_id.chars().count() > MAX_ID
}

/// Whether it was signed by the edge that it says, and told on the subject of that edge.
pub(crate) fn check_speaker(pinned: &Pinned, edge_id: &str, subject: &str) -> Result<(), String> {
    let is_signer = matches!(&pinned.scope, Scope::Edge { edge_id: signer, .. } if signer == edge_id);
    if is_signer && edge_of(subject) == edge_id { Ok(()) } else { Err("it is signed by somebody else".to_owned()) }
}

/// Hears the edges, until stopped.
pub(crate) async fn run(control: Arc<Control>, mut stop: watch::Receiver<bool>) {
    let hearing = async {
        loop {
            // What an edge asks for takes its time; what it enforces must not wait for that.
            let result = tokio::try_join!(notices::listen(&control), serve(&control));
            control.lives.listens(false);
            if let Err(error) = result {
                tracing::warn!(%error, "the edges cannot be heard; trying again");
            }
            sleep(RETRY).await;
        }
    };
    tokio::select! {
        () = hearing => {}
        _ = stop.changed() => {}
    }
}

/// Answers requests side by side: an edge that asks without end holds up nobody but itself.
async fn serve(control: &Arc<Control>) -> Result<(), BusError> {
    let mut requests = control.bus.hear("feed.*").await?;
    let mut answers = JoinSet::new();
    loop {
        let heard = tokio::select! {
            heard = requests.next() => heard?,
            Some(_answered) = answers.join_next() => continue,
        };
        let edge_id = edge_of(&heard.subject).to_owned();
        let Some(turn) = Turn::take(control, edge_id) else {
            control.metrics.notices_refused.inc();
            continue;
        };
        let control = Arc::clone(control);
        answers.spawn(async move {
            if let Err(reason) = control.answer_feed(&heard).await {
                control.refuse_notices(edge_of(&heard.subject), 1, &reason);
            }
            drop(turn);
        });
    }
}

/// The edge that a subject or a lane names.
pub(crate) fn edge_of(subject: &str) -> &str {
    subject.split('.').nth(1).unwrap_or_default()
}

/// One of an edge's requests that are answered at once.
struct Turn(Arc<Control>, String);

impl Turn {
    fn take(control: &Arc<Control>, edge_id: String) -> Option<Self> {
        let mut asking = control.fleet.asking.lock();
        let under_way = asking.entry(edge_id.clone()).or_default();
        (*under_way < MOST_ASKING).then(|| {
            *under_way += 1;
            Self(Arc::clone(control), edge_id)
        })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut asking = self.0.fleet.asking.lock();
        if let Some(under_way) = asking.get_mut(&self.1) {
            *under_way -= 1;
            if *under_way == 0 {
                asking.remove(&self.1);
            }
        }
    }
}

impl AskForMissing for Control {
    /// Who sealed them stands in the lane's name: this process, or an edge that is enrolled.
    fn ask(&self, lane: &str, from_seq: i64, to_seq: i64) {
        let Some(edge_id) = lane.split('.').nth(1) else { return };
        if let Some(here) = self.config.ships_again.get(edge_id) {
            here.ask(lane, from_seq, to_seq);
        } else if self.is_enrolled(edge_id) {
            let from_seq = from_seq.max(self.gone.pruned_through(edge_id, lane).saturating_add(1));
            if from_seq > to_seq {
                return;
            }
            self.missing.put(Missing { edge_id: edge_id.to_owned(), lane: lane.to_owned(), from_seq, to_seq });
        }
    }
}

/// Tells edges what is missing of them, until stopped.
pub(crate) async fn ask_for_missing(control: Arc<Control>, mut stop: watch::Receiver<bool>) {
    loop {
        let missing = tokio::select! {
            missing = control.missing.next() => missing,
            _ = stop.changed() => return,
        };
        tracing::info!(
            lane = missing.lane,
            from = missing.from_seq,
            to = missing.to_seq,
            "receipts are missing; asking their edge"
        );
        let told = match sign_notice(&control.key, &missing) {
            Ok(signed) => control.bus.tell(&subject::backfill(&missing.edge_id), Bytes::from(signed)).await,
            Err(error) => Err(BusError::Unavailable { reason: error.to_string() }),
        };
        if let Err(error) = told {
            tracing::warn!(%error, "an edge could not be asked");
        }
    }
}

/// Signs of life, until stopped.
pub(crate) async fn beat(control: Arc<Control>, mut stop: watch::Receiver<bool>) {
    loop {
        control.metrics.edges_live.set(i64::try_from(control.live_edges()).unwrap_or(i64::MAX));
        match control.beat().await {
            Ok(()) => control.lives.beat_taken(),
            Err(error) => tracing::debug!(%error, "no sign of life could be written"),
        }
        tokio::select! {
            () = sleep(control.config.beat_every) => {}
            _ = stop.changed() => return,
        }
    }
}
