//! Enrolment: an edge that was invited tells its public keys, and learns whom to believe. Promises that an invitation is used once, and that
//! no key is believed before a receipt of every tenant that it may speak for says so.

use aegis_keys::{Scope, VerifyingKey};
use aegis_ledger::Draft;
use aegis_model::{EventKind, Phase, TenantId};
use aegis_store::{EdgeKey, EdgePublicKeys, Enrolment, StoreError};
use axum::body::Body;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::json;

use crate::control::{Control, ControlError};
use crate::input::{check_text, parse, read_body, require_json};
use crate::outbox::Pending;
use crate::problem::Problem;
use crate::reply::Json;

/// Longest body of an enrolment, bytes.
const MAX_BODY: usize = 16 * 1024;
/// Longest key text, characters.
const MAX_KEY: usize = 128;

/// `POST /v1/edges/enroll`.
#[derive(Deserialize)]
struct EnrollBody {
    token: String,
    /// Ed25519, base64.
    receipt_key: String,
    /// The public half of the edge's NATS login.
    nkey: String,
}

pub(crate) async fn enroll(control: &Control, parts: &Parts, body: Body) -> Result<Response, Problem> {
    let Some(trust_key) = &control.config.edge_trust_key else {
        return Err(Problem::not_found("enrolment"));
    };
    require_json(&parts.headers)?;
    let bytes = read_body(&parts.headers, body, MAX_BODY).await?;
    // A parser's complaint could repeat the token.
    let body: EnrollBody = parse(&bytes, MAX_BODY)
        .map_err(|problem| Problem::new(problem.status, &problem.code, "send {\"token\", \"receipt_key\", \"nkey\"} as text"))?;
    check_text("receipt_key", &body.receipt_key, MAX_KEY)?;
    check_text("nkey", &body.nkey, MAX_KEY)?;
    let key = VerifyingKey::from_base64(&body.receipt_key)
        .map_err(|_| Problem::bad_request("invalid_field", "`receipt_key` is no Ed25519 public key in base64"))?;
    if !is_user_nkey(&body.nkey) {
        return Err(Problem::bad_request("invalid_field", "`nkey` is no public user nkey (U and 55 letters and digits)"));
    }
    if !control.ledger.is_writable() {
        return Err(Problem::unavailable(
            "receipt_unavailable",
            "the ledger cannot be written, so that nothing may be changed; try again",
        ));
    }
    let keys = EdgePublicKeys { key_id: key.key_id(), public_key: &body.receipt_key, nkey: &body.nkey };
    // Known keys are no news: whoever sends one does not hold it, or enrolled before.
    let known = control.ring.get(key.key_id()).is_some();
    let pending = Mutex::new(Vec::new());
    let facts = |edge: &EdgeKey| {
        if known {
            return Err(StoreError::Invalid { what: "receipt_key", why: "is known already; an edge makes a key of its own" });
        }
        if control.is_of_this_process(&edge.edge_id) {
            return Err(StoreError::Invalid {
                what: "edge id",
                why: "is the one of the edge in control's own process (`edge.id`); invite the edge under another",
            });
        }
        let prepared = edge.tenants.iter().map(|tenant| control.prepare(enrolled_draft(control, tenant, edge)));
        let prepared: Vec<Pending> =
            prepared.collect::<Result<_, _>>().map_err(|problem| StoreError::TakenBack(problem.message))?;
        let rows = prepared.iter().flat_map(|pending| pending.rows().iter().cloned()).collect();
        *pending.lock() = prepared;
        Ok(rows)
    };
    let enrolled = control.store.enroll_edge(&body.token, keys, &facts).await?;
    let edge = match enrolled {
        None => {
            return Err(Problem::unauthorized("invalid_credential", "the invitation is not valid (unknown, used or expired)"));
        }
        Some(Enrolment::New(edge)) => {
            for pending in pending.into_inner() {
                control.seal(pending).await?;
            }
            edge
        }
        // Its answer was lost, or one of its receipts could not be sealed then.
        Some(Enrolment::Again(edge)) => {
            if control.settle_outbox().await? > 0 {
                return Err(Problem::unavailable(
                    "receipt_pending",
                    "the receipt of this enrolment is not sealed yet; try again",
                ));
            }
            edge
        }
    };
    control.ring.pin(key, scope_of(&edge));
    control.edge_serves(&edge.edge_id, &edge.tenants);
    control.enrolled.notify_one();
    tracing::info!(edge_id = edge.edge_id, key_id = edge.key_id, tenants = edge.tenants.len(), "an edge is enrolled");
    let reply = json!({
        "edge_id": edge.edge_id, "tenants": edge.tenants, "key_id": edge.key_id,
        "control_keys": [control.key.verifying_key().to_base64()], "trust_key": trust_key.to_hex().as_str(),
    });
    Ok(Json(reply).into_response())
}

/// The form of an nkey's public half; only NATS itself has a use for more.
fn is_user_nkey(text: &str) -> bool {
    text.len() == 56 && text.starts_with('U') && text.bytes().all(|b| b.is_ascii_uppercase() || (b'2'..=b'7').contains(&b))
}

fn enrolled_draft(control: &Control, tenant: &TenantId, edge: &EdgeKey) -> Draft {
    let mut event = control.event(tenant, EventKind::ConfigChanged);
    event.reason = Some("edge_enrolled".to_owned());
    event.approver = Some(edge.edge_id.clone());
    let mut draft = Draft::new(event, Phase::Config);
    draft.detail = Some(json!({
        "change": "edge_enrolled", "edge_id": edge.edge_id, "key_id": edge.key_id, "public_key": edge.public_key, "nkey": edge.nkey,
    }));
    draft
}

fn scope_of(edge: &EdgeKey) -> Scope {
    Scope::Edge { edge_id: edge.edge_id.clone(), tenants: edge.tenants.iter().map(ToString::to_string).collect() }
}

impl Control {
    /// Whether a ledger of this process has lanes under this name.
    fn is_of_this_process(&self, edge_id: &str) -> bool {
        self.config.edge_id == edge_id || self.config.ships_again.contains_key(edge_id)
    }

    /// Believes the keys of all edges that were enrolled before.
    pub(crate) async fn pin_edges(&self) -> Result<(), ControlError> {
        for edge in self.store.edge_keys().await? {
            match VerifyingKey::from_base64(&edge.public_key) {
                Ok(key) => {
                    if self.is_of_this_process(&edge.edge_id) {
                        tracing::warn!(
                            edge_id = edge.edge_id,
                            "an enrolled edge has the name of the edge in this process (`edge.id`): nobody asks it for receipts that are missing; enrol it under another name"
                        );
                    }
                    self.ring.pin(key, scope_of(&edge));
                    self.edge_serves(&edge.edge_id, &edge.tenants);
                }
                Err(error) => return Err(ControlError::Failed(format!("the key of edge {}: {error}", edge.edge_id))),
            }
        }
        Ok(())
    }
}
