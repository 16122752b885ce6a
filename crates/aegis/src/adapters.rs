//! Where crates meet that do not know each other: each adapter gives one crate's trait the other's behaviour, and nothing else.

use std::sync::Arc;

use aegis_control::{ContainmentOutcome, Control};
use aegis_edge::EdgeView;
use aegis_ingest::{NotRegistered, ResourceSink, SecretsUnavailable, WebhookSecrets};
use aegis_model::{EntryKind, ResourceRecord, TenantId};
use aegis_respond::{ContainmentRequest, ContainmentRequests, RequestOutcome, RespondError};
use aegis_store::Store;
use async_trait::async_trait;

/// Tells control when the edge of this process enforces a revision.
#[derive(Debug)]
pub(crate) struct LocalEdge(pub(crate) Arc<EdgeView>);

#[async_trait]
impl aegis_control::AppliedWatch for LocalEdge {
    async fn wait_applied(&self, revision: i64, _kind: EntryKind, timeout: std::time::Duration) -> bool {
        self.0.wait_applied(revision, timeout).await
    }
}

/// Response asks control to contain.
#[derive(Debug)]
pub(crate) struct Containments(pub(crate) Arc<Control>);

#[async_trait]
impl ContainmentRequests for Containments {
    async fn request(&self, request: ContainmentRequest) -> Result<RequestOutcome, RespondError> {
        let asked = aegis_control::ContainmentRequest {
            tenant_id: request.tenant_id,
            command_id: request.command_id,
            target_type: request.target_type,
            target_id: request.target_id,
            kind: request.kind,
            reason: request.reason,
            by: request.by,
            evidence_ids: request.event_ids,
        };
        match self.0.request_containment(asked).await {
            Ok(ContainmentOutcome::Applied { state, .. }) => Ok(RequestOutcome::Applied { revision: state.revision }),
            Ok(ContainmentOutcome::AlreadyApplied) => Ok(RequestOutcome::AlreadyApplied),
            Ok(ContainmentOutcome::CapReached) => Ok(RequestOutcome::CapReached),
            Ok(ContainmentOutcome::UnknownTarget) => Ok(RequestOutcome::Refused("the target is not registered".to_owned())),
            Err(error) => Err(RespondError::Unavailable(error.to_string())),
        }
    }
}

/// Ingest finds webhook secrets in the store.
#[derive(Debug)]
pub(crate) struct StoredSecrets(pub(crate) Store);

#[async_trait]
impl WebhookSecrets for StoredSecrets {
    async fn secret(&self, tenant: &TenantId, adapter: &str) -> Result<Option<Vec<u8>>, SecretsUnavailable> {
        match self.0.webhook_secret(tenant, adapter).await {
            Ok(secret) => Ok(secret.map(|secret| secret.expose().as_bytes().to_vec())),
            Err(error) => Err(SecretsUnavailable { reason: error.to_string() }),
        }
    }
}

/// Detection finds the texts of rules that changed in the store.
#[derive(Debug)]
pub(crate) struct StoredRules(pub(crate) Store);

#[async_trait]
impl aegis_detect::RuleTexts for StoredRules {
    async fn text(&self, tenant: &TenantId, rule_id: &str, hash: &str) -> Result<Option<String>, String> {
        self.0.rule_text(tenant, rule_id, hash).await.map_err(|error| error.to_string())
    }

    async fn common_text(&self, rule_id: &str, hash: &str) -> Result<Option<String>, String> {
        self.0.common_rule_text(rule_id, hash).await.map_err(|error| error.to_string())
    }
}

/// What webhooks say of repositories keeps the registry current.
#[derive(Debug)]
pub(crate) struct RepositoryRegistry(pub(crate) Arc<Control>);

#[async_trait]
impl ResourceSink for RepositoryRegistry {
    async fn observed(&self, tenant: &TenantId, record: ResourceRecord) -> Result<(), NotRegistered> {
        self.0.observe_resource(tenant, &record).await.map_err(|error| NotRegistered { reason: error.to_string() })
    }
}
