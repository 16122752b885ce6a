//! Detection rules that change while the program runs. A tenant's own: each change is a version that was tried before it stands, with its config receipt.
//! Promises that none stands that was not read, tested and run over the history here, whatever the caller says of it. And what operators make, on the
//! data folder, of the rules that every tenant has. Both become records in the log.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aegis_bus::{BusError, Message, PubAck, Stream, subject};
use aegis_keys::sign_notice;
use aegis_ledger::Draft;
use aegis_model::{CommonRuleRecord, EventKind, PARTITIONS, Phase, RuleRecord, SecurityEvent, TenantId, Timestamp, partition_of};
use aegis_store::{NewRuleVersion, RuleChange, RuleRefusal, StandingCommonRule};
use async_trait::async_trait;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};

use crate::control::Control;
use crate::detection;
use crate::input::{MAX_ID, check_text, parse};
use crate::problem::Problem;
use crate::record::SOURCE;
use crate::reply::Json;
use crate::routes::Call;

/// What a receipt says of such a change, and of who made it beside the program.
const CHANGE: &str = "rule_changed";
const OPERATOR: &str = "operator";
/// Most tests of one rule.
const MAX_TESTS: usize = 100;

/// How long detection goes untold of a change where the bus does not take it.
const RETRY: Duration = Duration::from_secs(1);

/// Where a record of a rule stands for itself.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Place {
    /// A tenant's own rule.
    Own(TenantId, String),
    /// A rule that every tenant has, in a partition.
    Common(u32, String),
}

/// What the log was told of, by this process.
#[derive(Debug, Default)]
pub(crate) struct ToldRules {
    /// Of each record's place: the revision.
    told: tokio::sync::Mutex<HashMap<Place, i64>>,
    behind: AtomicBool,
    wake: Notify,
}

impl ToldRules {
    /// Something may stand that the log was not told of.
    pub(crate) fn mark_behind(&self) {
        self.behind.store(true, Ordering::SeqCst);
        self.wake.notify_one();
    }
}

impl Control {
    /// Puts into the log, signed, what stands of all tenants' own rules, and of operators' changes, unless this process has done so. What was told by an
    /// earlier one is told again: detection may have lost it, and takes no revision twice.
    async fn tell_rules(&self) -> Result<(), Problem> {
        let mut told = self.rules.told.lock().await;
        for rule in self.store.standing_common_rules().await? {
            // To each partition, whoever is there: a tenant that comes later finds the same.
            let mut records = Vec::new();
            for partition in 0..PARTITIONS {
                let place = Place::Common(partition, rule.rule_id.clone());
                if told.get(&place).is_some_and(|revision| *revision >= rule.revision) {
                    continue;
                }
                let StandingCommonRule { rule_id, revision, hash, text, .. } = rule.clone();
                let record = CommonRuleRecord { partition, rule_id, revision, hash, text };
                let payload = sign_notice(&self.key, &record).map_err(Problem::internal)?;
                records.push((place, revision, Message::new(subject::ruleset(partition), payload)));
            }
            self.tell(&mut told, records).await?;
        }
        for tenant in self.store.list_tenants().await? {
            for rule in self.store.standing_rules(&tenant).await? {
                let place = Place::Own(tenant.clone(), rule.rule_id.clone());
                if told.get(&place).is_some_and(|revision| *revision >= rule.revision) {
                    continue;
                }
                let (rule_id, revision, hash, text) = (rule.rule_id, rule.revision, rule.hash, rule.text);
                let record = RuleRecord { tenant_id: tenant.clone(), rule_id, revision, hash, text };
                let payload = sign_notice(&self.key, &record).map_err(Problem::internal)?;
                // Without an id: one that could be told ahead is anybody's to use first, and detection takes no revision twice.
                self.tell(&mut told, vec![(place, revision, Message::new(subject::ruleset(partition_of(&tenant)), payload))])
                    .await?;
            }
        }
        Ok(())
    }

    /// Sends records to the log, each with its place and revision.
    async fn tell(&self, told: &mut HashMap<Place, i64>, records: Vec<(Place, i64, Message)>) -> Result<(), Problem> {
        if records.is_empty() {
            return Ok(());
        }
        let (places, messages): (Vec<_>, Vec<_>) =
            records.into_iter().map(|(place, revision, message)| ((place, revision), message)).unzip();
        let results = self.bus.publish(Stream::Ase, messages).await;
        note_told(told, places, results).map_err(|error| {
            tracing::warn!(%error, "the log does not take a change of rules");
            Problem::unavailable("bus_unavailable", "the log cannot be written")
        })
    }
}

/// Notes which records the log took, also where it did not take all: each that is sent again would be in the log once more, and only the rest is.
fn note_told(
    told: &mut HashMap<Place, i64>,
    sent: Vec<(Place, i64)>,
    results: Vec<Result<PubAck, BusError>>,
) -> Result<(), BusError> {
    let mut results = results.into_iter();
    let mut first_refusal = None;
    for (place, revision) in sent {
        match results.next().unwrap_or(Err(BusError::Closed)) {
            Ok(_) => {
                told.insert(place, revision);
            }
            Err(refusal) => {
                first_refusal.get_or_insert(refusal);
            }
        }
    }
    first_refusal.map_or(Ok(()), Err)
}

/// Tells detection of what stands: at the start, and whenever something may have changed.
pub(crate) async fn run(control: Arc<Control>, mut stop: watch::Receiver<bool>) {
    control.rules.mark_behind();
    loop {
        tokio::select! {
            () = control.rules.wake.notified() => {}
            () = tokio::time::sleep(RETRY) => {}
            _ = stop.changed() => return,
        }
        if control.rules.behind.swap(false, Ordering::SeqCst)
            && let Err(problem) = control.tell_rules().await
        {
            tracing::warn!(code = problem.code, "detection is not told of all rules yet");
            control.rules.behind.store(true, Ordering::SeqCst);
        }
    }
}

/// One file of tests beside a rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleTest {
    pub name: String,
    pub text: String,
}

/// Why a rule may not stand, or could not be tried.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleTrialError {
    /// For whoever wrote the rule.
    #[error("{message}")]
    Refused { code: &'static str, message: String },
    /// For the log.
    #[error("{0}")]
    Failed(String),
}

/// Says which rules do not know all of their window of a tenant yet: what control asks of detection too.
#[async_trait]
pub trait WaitingRules: Send + Sync + std::fmt::Debug {
    /// One object for each rule that waits; None where detection does not answer now.
    async fn of(&self, tenant: &TenantId) -> Option<Value>;
}

/// Tries rules: what control asks of detection, which it does not know.
#[async_trait]
pub trait RuleTrials: Send + Sync + std::fmt::Debug {
    /// What the text would be as a version; not tried yet.
    async fn read(&self, text: &str) -> Result<NewRuleVersion, RuleTrialError>;

    /// The same with its backtest, once its tests are green and it has run over the tenant's history.
    async fn try_out(
        &self,
        tenant: &TenantId,
        version: NewRuleVersion,
        tests: &[RuleTest],
    ) -> Result<NewRuleVersion, RuleTrialError>;
}

/// `POST /v1/rules`.
#[derive(Debug, Deserialize)]
struct RuleBody {
    text: String,
    #[serde(default)]
    tests: Vec<RuleTest>,
}

pub(crate) async fn activate(control: &Control, call: &Call) -> Result<Response, Problem> {
    let body: RuleBody = parse(&call.body, control.config.max_body_bytes)?;
    check_tests(&body.tests)?;
    let Some(trials) = control.config.rule_trials.as_ref().map(Arc::clone) else {
        let why = "no tenant activates rules here: whoever runs the control plane does, on its data folder, or allows it with detect.own_rules";
        return Err(Problem::conflict("own_rules_not_allowed", why));
    };
    // One at a time: a trial takes its time, and what it takes is everybody's.
    let Ok(_turn) = control.rule_turn.try_lock() else {
        return Err(Problem::conflict("rule_trial_under_way", "another rule is being tried; try again when it is done"));
    };
    let version = trials.read(&body.text).await?;
    if let Some(refusal) = control.store.may_change_rule(call.tenant(), &version).await? {
        return Err(refusal.into());
    }
    let version = trials.try_out(call.tenant(), version, &body.tests).await?;
    let pending = control.prepare(control.config_draft(&call.caller, CHANGE, detail_of(&version)))?;
    let made = control.store.put_rule_version(call.tenant(), &version, call.caller.name(), pending.rows()).await?;
    let revision = match made {
        RuleChange::Made { revision } => revision,
        RuleChange::Refused(refusal) => return Err(refusal.into()),
    };
    let sealed = control.seal(pending).await;
    control.rules.mark_behind();
    sealed?;
    let NewRuleVersion { rule_id, name, version, mode, hash, note, backtest, .. } = version;
    let reply = json!({
        "rule_id": rule_id, "name": name, "version": version, "mode": mode, "hash": hash, "note": note, "backtest": backtest, "revision": revision,
    });
    Ok((StatusCode::CREATED, Json(reply)).into_response())
}

fn check_tests(tests: &[RuleTest]) -> Result<(), Problem> {
    if tests.len() > MAX_TESTS {
        return Err(Problem::bad_request("invalid_field", format!("`tests` has at most {MAX_TESTS} entries")));
    }
    tests.iter().try_for_each(|test| check_text("tests.name", &test.name, MAX_ID))
}

pub(crate) async fn history(control: &Control, call: &Call) -> Result<Response, Problem> {
    let page = call.query.page()?;
    let rule_id = call.query.filter("rule_id")?;
    Ok(Json(control.store.list_rule_versions(call.tenant(), rule_id, page.limit, page.offset).await?).into_response())
}

/// What operators made of the rules that every tenant has. What those told over the history of all tenants is for no tenant to know.
pub(crate) async fn common_history(control: &Control, call: &Call) -> Result<Response, Problem> {
    let page = call.query.page()?;
    let rule_id = call.query.filter("rule_id")?;
    let mut versions = control.store.list_common_rule_versions(rule_id, page.limit, page.offset).await?;
    versions.iter_mut().for_each(|version| version.backtest = None);
    Ok(Json(versions).into_response())
}

/// Which rules programs brought for every tenant: what each tenant has receipts of since it was made, and what was before.
pub(crate) async fn sets(control: &Control, call: &Call) -> Result<Response, Problem> {
    let page = call.query.page()?;
    Ok(Json(control.store.list_rule_set_changes(page.limit, page.offset).await?).into_response())
}

/// The rules that tell nothing of the tenant yet, since they do not know all of their window.
pub(crate) async fn waiting(control: &Control, call: &Call) -> Result<Response, Problem> {
    let Some(waiting) = &control.config.waiting_rules else { return Ok(Json(json!([])).into_response()) };
    let waiting = waiting.of(call.tenant()).await.ok_or_else(detection::unanswered)?;
    Ok(Json(waiting).into_response())
}

/// What a receipt says of a version: what it is, and what it was tried with. Its text is represented by its hash.
fn detail_of(version: &NewRuleVersion) -> Value {
    let told = |name: &str| version.backtest.as_ref().map(|backtest| backtest[name].clone());
    json!({
        "rule_id": version.rule_id, "name": version.name, "version": version.version, "mode": version.mode, "rule_hash": version.hash,
        "note": version.note, "events": told("events"), "alerts": told("alerts"), "alerts_per_day": told("alerts_per_day"),
    })
}

/// The draft of the receipt, in one tenant's lane, of a change that an operator makes on the data folder of a rule that every tenant has. What the rule
/// told over the history is of all tenants, and so in none of their receipts.
#[must_use]
pub fn common_rule_change_by_operator(tenant: &TenantId, version: &NewRuleVersion, edge_id: &str, now: Timestamp) -> Draft {
    let of_all = NewRuleVersion { backtest: None, ..version.clone() };
    let mut draft = rule_change_by_operator(tenant, &of_all, edge_id, now);
    if let Some(object) = draft.detail.as_mut().and_then(Value::as_object_mut) {
        for of_history in ["events", "alerts", "alerts_per_day"] {
            object.remove(of_history);
        }
        object.insert("every_tenant".to_owned(), json!(true));
        object.insert("of_program".to_owned(), json!(version.text.is_empty()));
    }
    draft
}

/// The draft of the receipt of a change that an operator makes on the data folder. The control plane that runs on it, or the next, seals it.
#[must_use]
pub fn rule_change_by_operator(tenant: &TenantId, version: &NewRuleVersion, edge_id: &str, now: Timestamp) -> Draft {
    let mut event = SecurityEvent::new(tenant.clone(), edge_id, SOURCE, EventKind::ConfigChanged, now);
    event.reason = Some(CHANGE.to_owned());
    event.approver = Some(OPERATOR.to_owned());
    let mut detail = detail_of(version);
    if let Some(object) = detail.as_object_mut() {
        object.insert("change".to_owned(), json!(CHANGE));
        object.insert("by".to_owned(), json!({"type": OPERATOR}));
    }
    let mut draft = Draft::new(event, Phase::Config);
    draft.detail = Some(detail);
    draft
}

impl From<RuleTrialError> for Problem {
    fn from(error: RuleTrialError) -> Self {
        match error {
            RuleTrialError::Refused { code, message } => Self::unprocessable(code, message),
            RuleTrialError::Failed(cause) => Self::internal(cause),
        }
    }
}

impl From<RuleRefusal> for Problem {
    fn from(refusal: RuleRefusal) -> Self {
        let code = match refusal {
            RuleRefusal::VersionNotHigher { .. } => "version_not_higher",
            RuleRefusal::StepTooLong { .. } => "step_too_long",
            RuleRefusal::NameTaken(_) => "taken",
            RuleRefusal::TooManyRules
            | RuleRefusal::TooManyVersions
            | RuleRefusal::TooManyCommonRules(_)
            | RuleRefusal::TooManyCommonVersions(_) => "limit_reached",
            RuleRefusal::TooOften => "too_often",
            // Of what an operator changes on the data folder, which no caller of the API can ask for.
            RuleRefusal::NoTenant | RuleRefusal::NothingToTakeBack => "not_applicable",
        };
        Self::conflict(code, refusal.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_records_that_the_log_took_in_part_only_the_rest_is_told_again() {
        let place = |partition| Place::Common(partition, "AEG-1".to_owned());
        let sent = || (0..4).map(|partition| (place(partition), 7)).collect::<Vec<_>>();
        let taken = || Ok(PubAck { seq: 1, duplicate: false });
        let full = || Err(BusError::Full { stream: Stream::Ase });
        let mut told = HashMap::from([(place(0), 5)]);
        let refused = note_told(&mut told, sent(), vec![taken(), taken(), full(), Err(BusError::Closed)]);
        assert_eq!(refused, full().map(|_: PubAck| ()));
        assert_eq!(told, HashMap::from([(place(0), 7), (place(1), 7)]));
        assert_eq!(note_told(&mut told, sent(), vec![taken(); 3]), Err(BusError::Closed), "what has no answer was not taken");
        assert_eq!(note_told(&mut told, sent(), vec![taken(); 4]), Ok(()));
        assert_eq!(told.len(), 4);
    }
}
