//! What a callback says, and how it is signed: `v1` is HMAC-SHA256 under the tenant's secret over `timestamp.body`.

use aegis_model::Timestamp;
use aegis_store::{Callback, Secret};
use hmac::{Hmac, KeyInit, Mac};
use serde_json::json;
use sha2::Sha256;

/// The name of the body's form.
const SCHEMA: &str = "aegis-callback-1";
const MICROS_PER_S: i64 = 1_000_000;

/// A signed callback, ready to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) body: Vec<u8>,
    /// `AegisAgent-Timestamp`: seconds since the epoch.
    pub(crate) timestamp: i64,
    /// `AegisAgent-Signature`: one `v1=` for each secret that is in force, with commas between.
    pub(crate) signature: String,
}

impl Message {
    /// The callback as it is sent at `now`. No argument, no reason and no name of a person stands in it.
    pub(crate) fn new(callback: &Callback, receipt_hash: Option<&str>, secrets: &[Secret], now: Timestamp) -> Self {
        let body = json!({
            "schema": SCHEMA,
            "callback_id": callback.callback_id,
            "tenant_id": callback.tenant_id,
            "approval_id": callback.approval_id,
            "version": callback.version,
            "status": callback.status,
            "action_hash": callback.action_hash,
            "receipt_hash": receipt_hash,
            "decided_at": callback.changed_at,
        });
        let body = body.to_string().into_bytes();
        let timestamp = now.as_micros().div_euclid(MICROS_PER_S);
        let signatures: Vec<String> = secrets.iter().map(|secret| sign(secret, timestamp, &body)).collect();
        Self { body, timestamp, signature: signatures.join(",") }
    }
}

fn sign(secret: &Secret, timestamp: i64, body: &[u8]) -> String {
    #[allow(clippy::expect_used)] // HMAC takes keys of any length
    let mac = Hmac::<Sha256>::new_from_slice(secret.expose().as_bytes()).expect("a key of any length");
    let mac = mac.chain_update(timestamp.to_string()).chain_update(b".").chain_update(body);
    format!("v1={}", aegis_canon::hex_text(&mac.finalize().into_bytes()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use aegis_model::{ApprovalStatus, TenantId};
    use aegis_store::CallbackState;
    use uuid::Uuid;

    fn callback() -> Callback {
        Callback {
            tenant_id: TenantId::new("acme").unwrap(),
            callback_id: Uuid::from_u128(1),
            approval_id: "approval-1".into(),
            version: 2,
            url: "https://hooks.example/".into(),
            status: ApprovalStatus::Approved,
            action_hash: "ab".repeat(32),
            event_id: None,
            changed_at: Timestamp::from_micros(1_800_000_000_000_000),
            state: CallbackState::Waiting,
            attempts: 0,
            last_error: None,
            due_at: Timestamp::default(),
        }
    }

    #[test]
    fn the_signature_is_the_one_that_others_compute() {
        let secret = Secret::new("0123456789abcdef0123456789abcdef".into());
        // printf '1800000000.{"a":1}' | openssl dgst -sha256 -hmac 0123456789abcdef0123456789abcdef
        let expected = "d40e555bc2c1dae21953757b24b165a171698880732ac310a5c8cf0ab751abf2";
        assert_eq!(sign(&secret, 1_800_000_000, b"{\"a\":1}"), format!("v1={expected}"));
    }

    #[test]
    fn each_secret_in_force_signs_and_every_part_is_signed() {
        let secrets = [Secret::new("a".repeat(32)), Secret::new("b".repeat(32))];
        let now = Timestamp::from_micros(1_800_000_000_999_999);
        let message = Message::new(&callback(), Some("cd"), &secrets, now);
        assert_eq!(message.timestamp, 1_800_000_000);
        let both = [sign(&secrets[0], message.timestamp, &message.body), sign(&secrets[1], message.timestamp, &message.body)];
        assert_eq!(message.signature, both.join(","));
        assert_ne!(both[0], sign(&secrets[0], message.timestamp + 1, &message.body));
        assert_ne!(both[0], sign(&secrets[0], message.timestamp, b"{}"));
        let body: serde_json::Value = serde_json::from_slice(&message.body).unwrap();
        assert_eq!((&body["status"], &body["version"], &body["receipt_hash"]), (&json!("APPROVED"), &json!(2), &json!("cd")));
        assert_eq!((&body["decided_at"], &body["tenant_id"]), (&json!("2027-01-15T08:00:00.000000Z"), &json!("acme")));
        assert!(!message.signature.contains(&"a".repeat(32)));
    }
}
